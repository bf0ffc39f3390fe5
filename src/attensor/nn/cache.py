"""What a layer keeps of the past while it decodes: tensors of every token, recurrent states, or both.

    cache = layer.new_cache(batch_size, max_length)
    layer(prompt, cache=cache)            # prefill, in any number of pieces
    layer(next_token, cache=cache)        # then token by token

Rows of a batch may begin with padding: `cache.first = count` before the padded tokens come. A cache is changed by the
forward that it is handed to. Where gradients are recorded, it holds the graph.

    cache.make_static(max_length)         # from now on of fixed size, so that a compiled step is one graph for all
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.nn._buffer import Ring, TokenBuffer
from attensor.nn._shapes import check_range
from attensor.ops._checks import check_devices, check_integers, check_tensor, checked, is_readable

__all__ = ["Cache", "StateCache", "TokenCache"]

_PLACE = ("length", "first")


class Cache(ABC):
    """The past of `batch_size` sequences that have the same length, padding at their beginning included.

    Attributes:
        can_crop: whether `crop` may go back to any earlier length.
        in_any_order: its layer reads what is held for one token in whatever order: a static cache need not sort it.
        max_length: room of a static cache; None of one that grows.
        fits: identity of the layer that it is known to fit; 0 if of none.
    """

    fits: int = 0
    can_crop: bool = True
    in_any_order: bool = False
    max_length: int | None = None
    _length: int = 0
    _seen: Tensor | None = None  # []: the length of a static cache, a number that no graph is specialised on
    _first: Tensor | None = None  # [B]; None as long as no row begins with padding
    _last_padded: int | None = 0  # the largest of `first`, known without asking the device; None until it is asked

    @property
    def length(self) -> int:
        """Tokens seen so far.

        A compiled graph must not hold the length of a static cache, which changes. Places are counted backwards there:
        the next token always has place `max_length`, and `first` moves down instead. Only differences count.
        """
        if self._seen is None or self.max_length is None:
            return self._length
        return self.max_length if torch.compiler.is_compiling() else int(self._seen)

    @length.setter
    def length(self, length: int) -> None:
        if self._seen is None:
            self._length = length
        else:
            self._seen.fill_(length)

    @property
    def is_static(self) -> bool:
        """Whether its size is fixed, see `make_static`."""
        return self.max_length is not None

    @property
    def first(self) -> Tensor:
        """[B], int64: how many tokens of padding each row begins with: its first real token's place."""
        if self._first is None:
            return self._any.new_zeros(self.batch_size, dtype=torch.int64)
        return self._first - self._behind()

    @first.setter
    def first(self, first: Tensor) -> None:
        check_tensor(name := type(self).__name__, "first", first)
        check_integers(name, "first", first, first)
        if first.shape != (self.batch_size,):
            raise ShapeError(f"{name}: first must be [B] = [{self.batch_size}], got {list(first.shape)}.")
        self._first = first.to(device=self._any.device, dtype=torch.int64) + self._behind()
        self._last_padded = None
        self._learn_padding()

    @property
    def batch_size(self) -> int:
        """Rows."""
        return self._any.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the contents live."""
        return self._any.device

    def is_like(self, other: Cache) -> bool:
        """Whether both are of one kind, with the same names and sizes but for rows and tokens."""
        if type(self) is not type(other) or self._tensors().keys() != other._tensors().keys():
            return False
        most = 2**62  # tokens, so that a window shows
        return all(self._sizes(name, most) == other._sizes(name, most) for name in self._tensors())

    @property
    def nbytes(self) -> int:
        """Bytes of what the next token needs (room reserved for later tokens is not counted)."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def real(self, start: int, end: int) -> Tensor | None:
        """Which tokens from place `start` to `end` are not padding: [B, end - start], bool; None if all are.

        In a compiled graph that was told of padding the tensor is returned even where all are: nothing can be asked.
        """
        self._learn_padding()
        if self._first is None or (self._last_padded is not None and start >= self._last_padded):
            return None
        return torch.arange(start, end, device=self._first.device) >= self.first[:, None]

    def sizes(self, length: int) -> dict[str, list[int]]:
        """Name -> size of each tensor of the contents after so many tokens, without the batch."""
        return {name: self._sizes(name, length) for name in self._tensors()}

    def state_dict(self) -> dict[str, Tensor]:
        """The contents as contiguous tensors, `length` and `first` included, ready for safetensors."""
        # copies: the cache goes on writing into its own memory
        held = {n: t.detach().clone(memory_format=torch.contiguous_format) for n, t in self._tensors().items()}
        return {"length": torch.tensor(self.length), "first": self.first.clone(), **held}

    @checked
    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take over contents exported by `state_dict` of a cache of the same layer; the batch size may differ.

        Raises:
            ShapeError: names or sizes are not those of this cache, or the tensors disagree with each other.
        """
        expected = self._tensors()
        names = {*_PLACE, *expected}
        if set(state_dict) != names:
            raise ShapeError(f"{type(self).__name__}: state_dict must hold {sorted(names)}, got {sorted(state_dict)}.")
        length, held = int(state_dict["length"]), {name: state_dict[name].clone() for name in expected}
        for name, tensor in held.items():
            fixed = [len(state_dict["first"]), *self._sizes(name, length)]
            if list(tensor.shape) != fixed:
                raise ShapeError(
                    f"{type(self).__name__}: {name} must be {fixed} after {length} tokens, got {list(tensor.shape)}; "
                    "was it exported by another layer?"
                )
        self._check_room(length)
        self.length = length
        self._replace(held)
        self.first = state_dict["first"]

    @checked
    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row `index[i]` was; rows may repeat or vanish (beam search).

        Args:
            index: [new batch size], integers.
        Raises:
            ShapeError, TypeError, ValueError: another rank, no integers, rows that are not there (seen on a CPU).
        """
        check_integers(name := "Cache.reorder", "index", index, index)
        if index.ndim != 1:
            raise ShapeError(f"{name}: index must be [new batch size], got {list(index.shape)}.")
        if is_readable(index):
            check_range(name, 0, self.batch_size, index=tuple(index.tolist()))
        first = None if self.real(0, 1) is None else self.first
        self._replace({n: t.index_select(0, index.to(t.device)) for n, t in self._tensors().items()})
        if first is not None:
            self.first = first[index.to(first.device)]

    @checked
    def crop(self, length: int) -> None:
        """Forget everything after the first `length` tokens.

        Raises:
            ValueError: longer than the contents, or the contents no longer allow it; nothing is forgotten then.
        """
        self.check_crop(length)
        self._crop(length)
        self.length = length
        if self.real(0, 1) is not None:
            self.first = self.first.clamp(max=length)

    def check_crop(self, length: int) -> None:
        """Refuse what `crop` refuses, and change nothing.

        Raises:
            ValueError: see `crop`.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"{type(self).__name__}.crop: length must be in [0, {self.length}], got {length}.")

    @checked
    def make_static(self, max_length: int) -> None:
        """From now on hold room for `max_length` tokens and write into it: a compiled step is one graph at any length.

            layer(prompt, cache=cache)
            cache.make_static(max_length=1024)
            step = torch.compile(layer, fullgraph=True, dynamic=False)
            step(next_token, cache=cache)                           # compiled once for all steps

        What is held stays; do it after the prompt, which is then read at the cost of its own length. A static cache is
        for inference, and one of all tokens ends at `max_length`; windows and states go on. A static one can be given
        another room in the same way.

        Args:
            max_length: tokens in all, padding and those held already included.
        Raises:
            ValueError: fewer than are held, or than one.
        """
        held, first, length = self._tensors(), self.first, self.length
        if max_length < max(length, 1):
            raise ValueError(
                f"{type(self).__name__}.make_static: max_length must be at least {max(length, 1)}, the tokens that are "
                f"held, got {max_length}; count the prompt and what shall follow it."
            )
        self.max_length, self._seen = max_length, torch.tensor(length, device=self.device)
        self._first, self._last_padded = first.clone(), None
        self._make_room(max_length, held)
        fixed = (self._seen, *self._memory()) if self.device.type == "cuda" else ()
        for tensor in fixed:  # graphs of CUDA write into them where they are
            torch._dynamo.mark_static_address(tensor)

    def _behind(self) -> Tensor | int:
        """By how much places of a compiled graph are ahead of the true ones, taken from them: see `length`."""
        if self._seen is None or self.max_length is None or not torch.compiler.is_compiling():
            return 0
        return self._seen - self.max_length

    def _advance(self, tokens: int) -> None:
        """So many more tokens have been seen."""
        if self._seen is None:
            self._length += tokens
        else:
            self._seen.add_(tokens)

    @abstractmethod
    def _check_room(self, length: int) -> None:
        """Refuse a length that a static cache of all tokens has no room for."""

    def _check_inference(self, **new: Tensor) -> None:
        """Refuse to write what gradients are recorded of over what they need."""
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in new.values()):
            raise ValueError(
                f"{type(self).__name__}: a static cache is written in place, which gradients cannot follow; use "
                "torch.no_grad(), or a cache without make_static() for training."
            )

    def _learn_padding(self) -> None:
        """Look once how far padding reaches: outside of compiled graphs, which would have to stop for it.

        A static cache always tells what is real, as its room is not filled.
        """
        if self._first is None or self._last_padded is not None or torch.compiler.is_compiling() or self.is_static:
            return
        self._last_padded = int(self._first.max()) if self._first.numel() else 0
        if not self._last_padded:
            self._first = None

    @property
    def _any(self) -> Tensor:
        return next(iter(self._tensors().values()))

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """What is held, by name; the batch is the first dimension."""

    @abstractmethod
    def _sizes(self, name: str, length: int) -> list[int]:
        """Sizes that a tensor has after so many tokens, without the batch."""

    @abstractmethod
    def _replace(self, held: Mapping[str, Tensor]) -> None:
        """Hold these tensors instead."""

    @abstractmethod
    def _crop(self, length: int) -> None:
        """Forget; `check_crop` has allowed it."""

    @abstractmethod
    def _make_room(self, max_length: int, held: Mapping[str, Tensor]) -> None:
        """Hold these tensors in memory of constant size."""

    @abstractmethod
    def _memory(self) -> list[Tensor]:
        """That memory."""


class TokenCache(Cache):
    """Named tensors with an entry for every token, such as keys and values, or for the last tokens of a window.

    Args:
        batch_size: rows.
        sizes: name -> sizes of one token's entry, such as (heads, width).
        windows: tokens to keep, of all tensors or by name; every token where None or not named.
        max_length: tokens to reserve room for at once; a longer sequence makes the cache grow.
        device: where the contents live.
        dtype: what they are stored in, that of the tokens if None; `append` returns them in the dtype of the new ones.
    """

    @checked
    def __init__(
        self,
        batch_size: int,
        sizes: Mapping[str, tuple[int, ...]],
        *,
        windows: int | Mapping[str, int | None] | None = None,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_range(self, 0, batch_size=batch_size, max_length=max_length)
        kept = windows if isinstance(windows, Mapping) else dict.fromkeys(sizes, windows)
        typed, factory = dtype is not None, partial(torch.empty, device=device, dtype=dtype)
        self._buffers: dict[str, TokenBuffer | Ring] = {
            name: TokenBuffer(factory(batch_size, 0, *size), kept.get(name), max_length, is_typed=typed)
            for name, size in sizes.items()
        }
        self.can_crop = all(buffer.window is None for buffer in self._buffers.values())
        self._is_sorted = True

    def append(self, **new: Tensor) -> dict[str, Tensor]:
        """Add the entries of new tokens to every tensor.

        Args:
            new: [B, T, *sizes] by name.
        Returns:
            By name what the new tokens may need, they last: [B, held before + T, *sizes]; `window - 1` before at most.
        Raises:
            ShapeError: a name is missing or unknown, or the batch, the number of tokens or an entry's sizes are wrong.
            ValueError: a static cache has no room, or gradients are recorded. In a compiled graph a RuntimeError.
        """
        if set(new) != set(self._buffers):
            raise ShapeError(f"TokenCache.append: tensors must be {sorted(self._buffers)}, got {sorted(new)}.")
        for name, tensor in new.items():
            check_tensor("TokenCache.append", name, tensor)
            check_devices("TokenCache.append", self._buffers[name].storage, "the cache", **{name: tensor})
        tokens = next(iter(new.values())).shape[1:2].numel()
        for name, tensor in new.items():
            sizes, rows = list(self._buffers[name].storage.shape), tensor.shape[:1].numel()
            if list(tensor.shape) != [sizes[0], tokens, *sizes[2:]]:
                raise ShapeError(
                    f"TokenCache.append: {name} must be {[sizes[0], tokens, *sizes[2:]]}, got {list(tensor.shape)}; "
                    f"all tensors have the same tokens; new_cache(batch_size={rows}) makes another batch."
                )
        if self.is_static:
            self._check_inference(**new)
            self._check_room(self.length + tokens)
        needed = {name: self._buffers[name].append(tensor, self.in_any_order) for name, tensor in new.items()}
        self._is_sorted = tokens != 1 or not self.in_any_order
        self._advance(tokens)
        return needed

    def real(self, start: int, end: int) -> Tensor | None:
        """Which tokens from place `start` to `end` are not padding, see `Cache.real`.

        Of what `append` has returned unsorted, `end` being the length: in that order.
        """
        # in this order: what is read before `append` writes it would tie a graph to its value
        if self._seen is None or self._first is None or end != self.length or self._is_sorted:
            return super().real(start, end)
        size, last = end - start, self._seen - 1
        places = last - (last - torch.arange(size, device=last.device)) % size
        return places >= self._first[:, None]

    def check_crop(self, length: int) -> None:
        """Refuse what `crop` refuses: with a window, what it has dropped.

        Raises:
            ValueError: see `crop`.
        """
        super().check_crop(length)
        for name, buffer in self._buffers.items():
            held = buffer.held.shape[1]
            if held < self.length and length not in (0, self.length):
                raise ValueError(
                    f"TokenCache.crop: only the last {held} of {self.length} tokens of {name} are held, so that length "
                    f"{length} cannot be restored; crop to 0 or keep a state_dict() of the earlier moment."
                )

    @property
    def nbytes(self) -> int:
        """Bytes of what the next token needs (room reserved for later tokens is not counted)."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    @property
    def _any(self) -> Tensor:
        return next(iter(self._buffers.values())).storage

    def _crop(self, length: int) -> None:
        for buffer in self._buffers.values():
            buffer.keep(length - self.length + buffer.held.shape[1])

    def _make_room(self, max_length: int, held: Mapping[str, Tensor]) -> None:
        seen = cast("Tensor", self._seen)
        self._buffers = {
            name: Ring(held[name], buffer.window, max_length, seen, is_typed=buffer.is_typed)
            for name, buffer in self._buffers.items()
        }

    def _memory(self) -> list[Tensor]:
        return [buffer.storage for buffer in self._buffers.values()]

    def _check_room(self, length: int) -> None:
        if self._seen is None or self.max_length is None or all(buffer.slides for buffer in self._buffers.values()):
            return
        message = (
            f"{type(self).__name__}: a static cache has room for max_length {self.max_length} tokens, and all are "
            "taken; make it larger with make_static(max_length=..)."
        )
        if torch.compiler.is_compiling():  # where lengths are counted from max_length
            torch._assert_async(self._seen + (length - 2 * self.max_length) <= 0, message)
        elif length > self.max_length:
            raise ValueError(message.replace("and all are taken", f"got {length}"))

    def _tensors(self) -> dict[str, Tensor]:
        return {name: buffer.held for name, buffer in self._buffers.items()}

    def _sizes(self, name: str, length: int) -> list[int]:
        buffer = self._buffers[name]
        return [length if buffer.window is None else min(length, buffer.window), *buffer.storage.shape[2:]]

    def _replace(self, held: Mapping[str, Tensor]) -> None:
        for name, tensor in held.items():
            self._buffers[name].replace(tensor)


class StateCache(Cache):
    """Named recurrent states of constant size.

    Args:
        batch_size: rows.
        sizes: name -> sizes of one row's state, such as (heads, key width, value width).
        start: name -> the number that a state begins with; 0 where not named.
        device: where the states live.
        dtype: float32 if lower, as states accumulate; if None that of the states, but at least float32.

    Attributes:
        states: [B, *sizes] by name.
    """

    can_crop = False

    @checked
    def __init__(
        self,
        batch_size: int,
        sizes: Mapping[str, tuple[int, ...]],
        *,
        start: Mapping[str, float] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_range(self, 0, batch_size=batch_size)
        self._is_typed = dtype is not None
        made: dict[str, Any] = {"device": device, "dtype": torch.promote_types(dtype or torch.float32, torch.float32)}
        self._start = dict.fromkeys(sizes, 0.0) | dict(start or {})
        self.states = {name: torch.full((batch_size, *size), self._start[name], **made) for name, size in sizes.items()}

    def update(self, tokens: int, **states: Tensor) -> None:
        """Take the states, by name, after `tokens` more tokens.

        Raises:
            ValueError: gradients are recorded of the states of a static cache.
        """
        if self.is_static:
            self._check_inference(**states)
            for name, state in states.items():
                if self.states[name].dtype == state.dtype:
                    self.states[name].copy_(state)
                else:  # the first tokens tell the dtype
                    self.states[name] = state.clone()
        else:
            self.states.update(states)
        self._advance(tokens)

    def check_crop(self, length: int) -> None:
        """Refuse all but everything (`length` 0) and nothing (`length` equal to the cache's own).

        Raises:
            ValueError: any other length: a recurrent state cannot be unwound.
        """
        super().check_crop(length)
        if length not in (0, self.length):
            raise ValueError(
                f"StateCache.crop: a recurrent state of {self.length} tokens cannot be unwound to {length}; "
                "crop to 0 and run the tokens again, or keep a state_dict() of the earlier moment."
            )

    def _crop(self, length: int) -> None:
        if length == 0:
            self.states = {name: torch.full_like(state, self._start[name]) for name, state in self.states.items()}

    def _make_room(self, max_length: int, held: Mapping[str, Tensor]) -> None:
        self.states = {name: state.detach().clone() for name, state in held.items()}

    def _memory(self) -> list[Tensor]:
        return list(self.states.values())

    def _check_room(self, length: int) -> None:
        """States have room for any."""

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self.states)

    def _sizes(self, name: str, length: int) -> list[int]:
        return list(self.states[name].shape[1:])

    def _replace(self, held: Mapping[str, Tensor]) -> None:
        for name, old in self.states.items():
            dtype = old.dtype if self._is_typed else torch.promote_types(held[name].dtype, torch.float32)
            self.states[name] = held[name].to(old.device, dtype)
