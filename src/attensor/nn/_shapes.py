"""Checks that every layer makes on its options and inputs, with one wording."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attensor.errors import RoomError, ShapeError
from attensor.ops._checks import check_tensor, is_autocast
from attensor.ops._precision import FLOATS

__all__ = [
    "check_hidden_states",
    "check_input",
    "check_range",
    "check_room",
    "check_sizes",
    "check_stages",
    "half",
    "head_dim",
    "kv_heads",
    "refuse_cache_with_packing",
]

_ROOM = 2**28


def check_range(
    who: object,
    low: float = -math.inf,
    below: float = math.inf,
    /,
    *,
    above: float = -math.inf,
    **options: float | tuple[float, ...] | None,
) -> None:
    """Refuse options, given by their names, that are not in [low, below), and greater than `above`; None passes.

    Args:
        who: the layer, or its name.
    Raises:
        ValueError: an option, or one entry of it, lies outside.
    """
    bounds = {f"at least {low}": low, f"greater than {above}": above, f"below {below}": below}
    expected = " and ".join(words for words, bound in bounds.items() if not math.isinf(bound))
    for argument, value in options.items():
        values = value if isinstance(value, (tuple, list)) else () if value is None else (value,)
        if not all(low <= x < below and x > above for x in values):
            name = who if isinstance(who, str) else type(who).__name__
            raise ValueError(f"{name}: {argument} must be {expected}, got {value}; choose another {argument}.")


def check_room(who: object, numbers: int, /, **options: int | None) -> None:
    """Refuse options that ask for a table of more than 2^28 numbers, which nobody means and which takes minutes.

    Raises:
        RoomError: they do.
    """
    if numbers > _ROOM:
        asked = ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)
        raise RoomError(
            f"{type(who).__name__}: {asked} must make a table of at most {_ROOM} numbers, got {numbers}; choose "
            "smaller ones."
        )


# ends of names of numbers that no model has otherwise -> `low`, `below`, `above` of `check_range`
_BOUNDS = {("path_rate", "dropout"): (0, 1, -math.inf), ("_eps", "_ratio", "_minimum"): (-math.inf, math.inf, 0)}


def check_sizes(config: Any, /, **least: int) -> None:
    """Refuse sizes of a configuration that no model can be built of, each by the name of its field.

    Whole numbers, and those in tuples, which must have an entry, are at least 1. By the ends of names, the rate of
    a dropped path and a dropout lie in [0, 1), and an eps, a ratio and a minimum are greater than 0. Other fields pass.

    Args:
        config: its fields are of the right kinds already, see `ops._checks.checked_fields`.
        least: fields that may be less than 1, and what they are at least.
    Raises:
        ValueError: a number lies outside, or a tuple is empty.
    """
    for field, annotation in ((field.name, str(field.type)) for field in dataclasses.fields(config)):
        value = getattr(config, field)
        low, below, above = next(
            (b for ends, b in _BOUNDS.items() if field.endswith(ends)), (None, math.inf, -math.inf)
        )
        if isinstance(value, (tuple, list)) and not value:
            raise ValueError(f"{type(config).__name__}: {field} must have an entry, got {value}; give one or more.")
        if low is None and "float" not in annotation and _is_whole(value):
            low = least.get(field, 1)
        if low is not None:
            for part in _rows(value):
                check_range(config, low, below, above=above, **{field: part})


def _is_whole(value: Any) -> bool:
    """An integer, or a tuple of such."""
    if isinstance(value, (tuple, list)):
        return all(_is_whole(part) for part in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _rows(value: Any) -> Sequence[Any]:
    """The rows of a tuple of tuples; anything else by itself."""
    return value if isinstance(value, (tuple, list)) and isinstance(value[0], (tuple, list)) else [value]


def check_stages(config: object, /, *fields: str) -> None:
    """Refuse fields that must have one entry for each stage of a model, and have not; one that is None passes.

    Raises:
        ValueError: their lengths differ.
    """
    lengths = {name: len(getattr(config, name)) for name in fields if getattr(config, name) is not None}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(
            f"{type(config).__name__}: one entry for each stage is needed, got {found}; make them equally many."
        )


def head_dim(layer: nn.Module, size: int, num_heads: int, *, argument: str = "hidden_size") -> int:
    """Width of one head when `size` channels are shared among `num_heads`.

    Raises:
        ValueError: `size` is not a multiple of `num_heads`.
    """
    check_range(layer, 1, **{argument: size, "num_heads": num_heads})
    size, num_heads = int(size), int(num_heads)  # of numpy they would overflow
    if size % num_heads:
        raise ValueError(
            f"{type(layer).__name__}: {argument} {size} is not a multiple of num_heads {num_heads}; "
            f"change {argument} or num_heads."
        )
    return size // num_heads


def half(layer: nn.Module, hidden_size: int, num_heads: int) -> int:
    """Channels of all keys together where they are half as many as the layer's.

    Raises:
        ValueError: the heads cannot share them.
    """
    size = hidden_size // 2
    if hidden_size > 0 < num_heads and hidden_size % num_heads == 0 and hidden_size % (2 * num_heads):
        raise ValueError(
            f"{type(layer).__name__}: hidden_size must be a multiple of {2 * num_heads}, twice num_heads, because keys "
            f"have half of the channels, got {hidden_size}; change hidden_size or num_heads."
        )
    return size


def kv_heads(layer: nn.Module, num_heads: int, num_kv_heads: int | None) -> int:
    """Number of key/value heads: `num_heads` unless given, and a divisor of it.

    Raises:
        ValueError: it does not divide `num_heads`.
    """
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    check_range(layer, 1, num_kv_heads=num_kv_heads)
    if num_heads % num_kv_heads:
        raise ValueError(
            f"{type(layer).__name__}: num_kv_heads {num_kv_heads} does not divide num_heads {num_heads}; "
            "each key/value head serves the same number of query heads."
        )
    return num_kv_heads


def check_hidden_states(layer: nn.Module, hidden_states: Tensor, hidden_size: int, ranks: Sequence[int]) -> None:
    """Refuse input that is not `[B, *space, hidden_size]` with one of the allowed numbers of dimensions.

    Args:
        layer: for the message.
        hidden_states: what came.
        hidden_size: channels that the layer was built for.
        ranks: allowed numbers of dimensions, batch and channels included.
    Raises:
        ShapeError: another rank or width.
        TypeError: no dense tensor, or of a dtype that is not floating or not that of the layer's plain projections.
        ValueError: the layer is on another device.
    """
    check_input(layer, "hidden_states", hidden_states, _plain_weight(layer))
    shape = list(hidden_states.shape)
    if hidden_states.dim() not in ranks:
        layouts = {3: "[B, T, C]", 4: "[B, height, width, C]", 5: "[B, depth, height, width, C]"}
        expected = " or ".join(layouts[rank] for rank in ranks)
        raise ShapeError(f"{type(layer).__name__}: hidden_states must be {expected}, got {shape}.")
    if shape[-1] != hidden_size:
        hint = " Channels first? Move them to the end with .movedim(1, -1)." if shape[1] == hidden_size else ""
        raise ShapeError(
            f"{type(layer).__name__}: hidden_states must end in hidden_size = {hidden_size} channels, "
            f"got {shape}.{hint}"
        )
    if len(shape) > 3 and 0 in shape[1:-1]:
        raise ShapeError(f"{type(layer).__name__}: hidden_states must have a cell along each axis, got {shape}.")


def check_input(layer: nn.Module, argument: str, x: Tensor, weight: Tensor | None) -> None:
    """Refuse what is no dense floating tensor like a weight that it meets first; nothing where a compiler looks.

    Args:
        layer: for the message.
        argument: what x is called.
        x: the input.
        weight: one that casts nothing by itself; None where there is none, and others count for nothing.
    Raises:
        TypeError: no such tensor, or another dtype outside autocast.
        ValueError: another device.
    """
    if torch.compiler.is_compiling():
        return
    name = type(layer).__name__
    check_tensor(name, argument, x)
    if x.dtype not in FLOATS:
        raise TypeError(
            f"{name}: {argument} must be torch.float16, bfloat16, float32 or float64, got {x.dtype}; use .float()."
        )
    if type(weight) is not nn.Parameter or weight.dtype not in FLOATS:
        return
    device = x.device
    # weights that are moved in when they are needed wait on the meta device
    if device != weight.device and not weight.is_meta:
        raise ValueError(f"{name}: {argument} is on {device}, the layer on {weight.device}; use .to({weight.device}).")
    if x.dtype != weight.dtype and not is_autocast(device.type):
        raise TypeError(
            f"{name}: {argument} must have the dtype {weight.dtype} of the layer, got {x.dtype}; use "
            f".to({weight.dtype}), or torch.autocast."
        )


def _plain_weight(layer: nn.Module) -> Tensor | None:
    """Of the first projection that casts nothing by itself: neither quantised nor adapted; None if there is none."""
    for child in layer.children():
        if type(child) is nn.Linear or type(child) is nn.Conv2d:
            return child.weight
    return None


def refuse_cache_with_packing(layer: nn.Module, cache: object | None, cu_seqlens: Tensor | None) -> None:
    """A cache continues the sequences of a batch; packed sequences have no rows to continue.

    Raises:
        ValueError: both are given.
    """
    if cache is not None and cu_seqlens is not None:
        raise ValueError(
            f"{type(layer).__name__}: cache and cu_seqlens exclude each other; decode sequences as rows of a batch."
        )
