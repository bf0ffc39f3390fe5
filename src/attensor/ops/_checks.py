"""What every attention refuses before anything is computed: wrong rank, sizes, dtype, device or layout."""

from __future__ import annotations

import functools
import inspect
import itertools
import numbers
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from attensor.errors import RoomError, ShapeError
from attensor.ops._kernel import is_direct
from attensor.ops._kinds import ANYTHING, TENSOR, Kind, kinds_of, refuse
from attensor.ops._precision import FLOATS

__all__ = [
    "check_broadcast",
    "check_cu_seqlens",
    "check_decay",
    "check_devices",
    "check_float",
    "check_integers",
    "check_qkv",
    "check_tensor",
    "checked",
    "checked_fields",
    "explained",
    "is_autocast",
    "is_readable",
    "scale_of",
]

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C")

_INTEGERS = (torch.int32, torch.int64)
_HEADS_FIRST = " Tensors laid out as [B, H, T, D]? Call .transpose(1, 2) first."


def checked(function: F, owner: str = "") -> F:
    """The function, which refuses arguments of another kind than annotated before it begins.

    Args:
        function: annotated; what has no annotation, or one that says nothing of kinds (`Any`), is let through.
        owner: begins the message; the function's name if empty, of a constructor the class's.
    Raises:
        TypeError: (the function returned) an argument of another kind, or a tensor that is not dense. ValueError: a
            number that is NaN or infinite, a string that is none of the choices. RoomError: sizes beyond the memory.
    Cost: 1 to 2 us a call; nothing under `torch.compile`.
    """
    number = len(_TABLES)
    _TABLES.append(_Table.of(function, owner))

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*arguments, **options)
        table = _TABLES[number]
        for (argument, sure, accepts), value in zip(table.in_order, arguments):
            if (type(value) not in sure and not accepts(value)) or _is_odd(value):
                table.refuse(arguments, argument, value)
        for argument, value in options.items():
            _, sure, accepts = table.by_name.get(argument, _ANYTHING)
            if (type(value) not in sure and not accepts(value)) or _is_odd(value):
                table.refuse(arguments, argument, value)
        if table.makes:
            arguments, options = _plain(arguments), dict(zip(options, _plain(options.values())))
        try:
            return function(*arguments, **options)
        except (RuntimeError, TypeError, OverflowError) as error:
            if _NO_ROOM.search(str(error)):
                raise table.too_large(arguments, options, error) from error
            raise

    return call  # type: ignore[return-value]


_Accepted = tuple[str, frozenset[type], Callable[[Any], bool]]  # name of an argument, `sure` and `accepts` of its kind
_ANYTHING: _Accepted = ("", ANYTHING.sure, ANYTHING.accepts)


@dataclass(frozen=True)
class _Table:
    """What `checked` knows of a function.

    Attributes:
        name: of the function, for messages.
        is_method: of a class that may be another than the one that defines it.
        makes: it is a constructor.
        kinds: by argument.
        in_order, by_name: the same as tuples, because they are looked at in every call.
    """

    name: str
    is_method: bool
    makes: bool
    kinds: dict[str, Kind]
    in_order: list[_Accepted]
    by_name: dict[str, _Accepted]

    @classmethod
    def of(cls, function: Callable[..., Any], owner: str) -> _Table:
        name = owner or function.__qualname__.rpartition("<locals>.")[2].removesuffix(".__init__")
        parameters, kinds = list(inspect.signature(function).parameters), kinds_of(function)
        by_name = {argument: (argument, kind.sure, kind.accepts) for argument, kind in kinds.items()}
        in_order = [by_name.get(argument, (argument, *_ANYTHING[1:])) for argument in parameters]
        is_method, makes = not owner and parameters[:1] in (["self"], ["cls"]), function.__name__ == "__init__"
        return cls(name, is_method, makes, kinds, in_order, by_name)

    def name_in(self, arguments: tuple[Any, ...]) -> str:
        if not arguments or not self.is_method:
            return self.name
        kind = arguments[0] if isinstance(arguments[0], type) else type(arguments[0])
        return kind.__name__ + self.name[len(self.name.partition(".")[0]) :]

    def refuse(self, arguments: tuple[Any, ...], argument: str, value: Any) -> None:
        refuse(self.name_in(arguments), argument, value, self.kinds.get(argument, ANYTHING))

    def too_large(self, arguments: tuple[Any, ...], options: dict[str, Any], error: Exception) -> RoomError:
        named = dict(zip((argument for argument, _, _ in self.in_order), arguments))
        return _too_large(self.name_in(arguments), {**named, **options}, error)


def _plain(values: Iterable[Any]) -> tuple[Any, ...]:
    """The same with integers of numpy as Python's: sizes that are computed of theirs would overflow in silence."""
    own = (int, bool)
    return tuple(int(x) if type(x) not in own and isinstance(x, numbers.Integral) else x for x in values)


_TABLES: list[_Table] = []  # of `checked`: a compiler takes no constructor that holds them itself

# what torch says of sizes that are too large; of a GPU's memory it says more than we could
_NO_ROOM = re.compile(r"DefaultCPUAllocator|[Oo]verflow when unpacking|calculation overflowed|multiplication overflow")


def _too_large(name: str, arguments: dict[str, Any], error: Exception) -> RoomError:
    sizes = [f"{n} {x}" for n, x in arguments.items() if type(x) in (int, tuple)]
    sizes += [f"{n} {_sizes(x)}" for n, x in arguments.items() if isinstance(x, Tensor)]
    why = str(error).partition("\n")[0].rpartition("DefaultCPUAllocator: ")[2]
    return RoomError(
        f"{name}: {', '.join(sizes)} must need no more memory than there is; choose smaller ones ({why:.120})."
    )


def checked_fields(kind: type[C]) -> type[C]:
    """The dataclass, which refuses attributes of another kind than annotated when it is made, see `checked`."""
    kind.__init__ = checked(kind.__init__, owner=kind.__name__)  # type: ignore[method-assign]
    return kind


def explained(step: F) -> F:
    """The method, whose failure on an argument of another kind than annotated says so, see `checked`.

    For steps that run once for every token: kinds are looked at when a step has failed, and not before.
    """
    number = len(_TABLES)
    _TABLES.append(_Table.of(step, ""))

    @functools.wraps(step)
    def call(*arguments: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            return step(*arguments, **options)
        try:
            return step(*arguments, **options)
        except (AttributeError, TypeError, RuntimeError):
            table = _TABLES[number]
            named = {argument: value for (argument, _, _), value in zip(table.in_order, arguments)} | options
            for argument, value in named.items():
                _, sure, accepts = table.by_name.get(argument, _ANYTHING)
                if (type(value) not in sure and not accepts(value)) or _is_odd(value):
                    table.refuse(arguments, argument, value)
            raise

    return call  # type: ignore[return-value]


def _is_odd(x: Any) -> bool:
    """A sparse, nested or quantised tensor: no operator knows them."""
    return isinstance(x, Tensor) and (x.layout is not torch.strided or x.is_nested or x.is_quantized)


def check_tensor(name: str, argument: str, x: object) -> None:
    """Refuse what is no dense tensor, where the name is not known before the call."""
    if not isinstance(x, Tensor) or _is_odd(x):
        refuse(name, argument, x, TENSOR)


def check_qkv(
    name: str, q: Tensor, k: Tensor, v: Tensor, *, space_dims: tuple[int, ...] = (1,), same_space: bool = False
) -> None:
    """Refuse q, k, v that no attention with heads last could take.

    Args:
        name: the operator, for the messages.
        q: [B, *space, H, K].
        k, v: [B, *space, Hkv, K or V]; Hkv divides H.
        space_dims: how many space axes are allowed.
        same_space: k's tokens lie on q's grid.
    Raises:
        ShapeError: rank, batch, tokens, heads or head sizes disagree.
        TypeError: a tensor is not of a floating dtype, or dtypes differ outside autocast.
        ValueError: devices differ.
    """
    if not torch.compiler.is_compiling() and _are_alike(q, k, v, space_dims):
        return
    ranks = [dims + 3 for dims in space_dims]
    for label, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim not in ranks or tensor.ndim != q.ndim:
            expected = " or ".join(f"{rank - 3} space axes ({rank} dimensions)" for rank in ranks)
            raise ShapeError(
                f"{name}: {label} must be [B, *space, heads, head size] with {expected}, the same rank "
                f"as q, got {_sizes(tensor)} beside q {_sizes(q)}."
            )
        check_float(name, label, tensor, q)
        if tensor.dtype != q.dtype and not is_autocast(q.device.type):
            raise TypeError(
                f"{name}: q, k and v must share one floating dtype, got {label} {tensor.dtype} beside "
                f"q {q.dtype}; use .to(q.dtype)."
            )
    _check_sizes(name, q, k, v, same_space)


def _are_alike(q: Tensor, k: Tensor, v: Tensor, space_dims: tuple[int, ...]) -> bool:
    """Whether there is nothing to look at one by one."""
    shape, dtype, device = q.shape, q.dtype, q.device
    is_one_kind = dtype == k.dtype == v.dtype and dtype in FLOATS and device == k.device == v.device
    return is_one_kind and shape == k.shape == v.shape and len(shape) - 3 in space_dims and shape[-2] > 0


def _check_sizes(name: str, q: Tensor, k: Tensor, v: Tensor, same_space: bool) -> None:
    if k.shape[:-1] != v.shape[:-1]:
        raise ShapeError(f"{name}: k {_sizes(k)} and v {_sizes(v)} must agree in everything but the last size.")
    if q.shape[-1] != k.shape[-1]:
        raise ShapeError(f"{name}: q {_sizes(q)} and k {_sizes(k)} must have the same head size (last).")
    if q.shape[0] != k.shape[0]:
        raise ShapeError(f"{name}: q {_sizes(q)} and k {_sizes(k)} must have the same batch size (first).")
    if k.shape[-2] == 0 or q.shape[-2] == 0 or q.shape[-2] % k.shape[-2]:
        raise ShapeError(
            f"{name}: the {q.shape[-2]} heads of q {_sizes(q)} must be a multiple of the {k.shape[-2]} "
            f"heads of k {_sizes(k)}.{_layout_hint(q, k)}"
        )
    if same_space and q.shape[1:-2] != k.shape[1:-2]:
        raise ShapeError(
            f"{name}: q {_sizes(q)} and k {_sizes(k)} must lie on the same grid [B, *space, heads, "
            f"head size].{_layout_hint(q, k)}"
        )


def check_broadcast(name: str, argument: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a mask that does not broadcast to `shape` or is neither bool nor floating."""
    sizes = tuple(tensor.shape)
    fits = len(sizes) <= len(shape) and all(a in (1, b) for a, b in zip(reversed(sizes), reversed(shape)))
    if not fits:
        raise ShapeError(f"{name}: {argument} must broadcast to {list(shape)}, got {_sizes(tensor)}.")
    if tensor.dtype != torch.bool and tensor.dtype not in FLOATS:
        raise TypeError(
            f"{name}: {argument} must be bool (True = attend) or floating (added to the scores), got {tensor.dtype}."
        )


def check_devices(name: str, first: Tensor, label: str = "q", /, **others: Tensor | None) -> None:
    """Refuse further tensors, given by their names, that do not lie where the first lies."""
    for argument, tensor in others.items():
        if tensor is not None and tensor.device != first.device:
            raise ValueError(
                f"{name}: {argument} is on {tensor.device}, {label} on {first.device}; use .to({label}.device)."
            )


def check_float(name: str, argument: str, tensor: Tensor, q: Tensor, label: str = "q") -> None:
    """Refuse a tensor that is not floating point, or not where q (by its name in `label`) is."""
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: {argument} must be floating point, got {tensor.dtype}; use .to(q.dtype).")
    if tensor.dtype not in FLOATS:  # float8: torch knows no arithmetic of it
        raise TypeError(
            f"{name}: {argument} must be float16, bfloat16, float32 or float64, got {tensor.dtype}; use .bfloat16()."
        )
    check_devices(name, q, label, **{argument: tensor})


def check_integers(name: str, argument: str, tensor: Tensor, q: Tensor, label: str = "q") -> None:
    """Refuse a tensor that is not int32 or int64, or not where q (by its name in `label`) is."""
    if tensor.dtype not in _INTEGERS:
        raise TypeError(f"{name}: {argument} must be int32 or int64, got {tensor.dtype}; use .long().")
    check_devices(name, q, label, **{argument: tensor})


def check_decay(name: str, q: Tensor, k: Tensor, log_decay: Tensor) -> None:
    """Refuse decays that are not [Hd], [.., Hd] or [.., Hd, K] for q [.., H, K] and k [.., Hkv, K], Hd = H or Hkv.

    A batch of 1 stands for every entry.
    """
    *tokens, heads, key_dim = q.shape
    shape = list(log_decay.shape)
    batch = 1 if log_decay.ndim > 1 and shape[0] == 1 else tokens[0]
    for decays in (heads, k.shape[-2]):
        if shape in ([decays], [batch, *tokens[1:], decays], [batch, *tokens[1:], decays, key_dim]):
            return check_float(name, "log_decay", log_decay, q)
    place = "B, T" if len(tokens) == 2 else "B"
    raise ShapeError(
        f"{name}: log_decay {shape} is none of [H], [{place}, H] and [{place}, H, K] for q {list(q.shape)}, with H or "
        f"the {k.shape[-2]} key heads.{_HEADS_FIRST}"
    )


def check_cu_seqlens(name: str, cu_seqlens: Tensor, q: Tensor, max_seqlen: int | None = None, label: str = "q") -> None:
    """Refuse a packing that is not [N + 1] integers that rise from 0 to T over a batch of one; N may be 0.

    The numbers are looked at on a CPU only: elsewhere that would wait for the device, and tokens before the first or
    after the last bound are seen by no other.
    """
    check_integers(name, "cu_seqlens", cu_seqlens, q, label)
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        raise ShapeError(f"{name}: cu_seqlens must be [N + 1] with N >= 0, got {_sizes(cu_seqlens)}.")
    if q.shape[0] != 1:
        raise ShapeError(
            f"{name}: packed sequences need a batch of 1, got {label} {_sizes(q)}; concatenate the sequences "
            "along the tokens."
        )
    if is_readable(cu_seqlens):
        _check_bounds(name, cu_seqlens.tolist(), q.shape[1], max_seqlen)


def _check_bounds(name: str, bounds: list[int], tokens: int, max_seqlen: int | None) -> None:
    if bounds[0] != 0 or bounds[-1] != tokens or bounds != sorted(bounds):
        shown = str(bounds) if len(bounds) < 12 else f"[{bounds[0]}, {bounds[1]}, .., {bounds[-1]}]"
        raise ShapeError(
            f"{name}: cu_seqlens must rise from 0 to the {tokens} tokens, got {shown}; it is the running sum of the "
            "lengths: F.pad(lengths.cumsum(0), (1, 0))."
        )
    longest = max((b - a for a, b in itertools.pairwise(bounds)), default=0)
    if max_seqlen is not None and longest > max_seqlen:
        raise ValueError(
            f"{name}: max_seqlen must be at least the length of the longest sequence, {longest}, got {max_seqlen}."
        )


def scale_of(q: Tensor, scale: float | None) -> float:
    """What multiplies q k: K ** -0.5 if None."""
    if scale is None:
        return float(max(q.shape[-1] if q.ndim else 0, 1) ** -0.5)
    return float(scale) if isinstance(scale, int) else scale


def is_readable(x: Tensor) -> bool:
    """Whether numbers can be looked at without waiting for a device: a plain tensor on a CPU, outside of traces."""
    return x.device.type == "cpu" and is_direct((x,))


def is_autocast(device_type: str) -> bool:
    """Whether autocast is on for that kind of device."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _sizes(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _layout_hint(q: Tensor, k: Tensor) -> str:
    """The repair, when exchanging tokens and heads would make the sizes agree."""
    return _HEADS_FIRST if q.shape[1] and k.shape[1] and q.shape[1] % k.shape[1] == 0 else ""
