"""What a layer keeps of the past while it decodes: tensors of every token, recurrent states, or both.

    cache = layer.new_cache(batch_size, max_length)
    layer(prompt, cache=cache)            # prefill, in any number of pieces
    layer(next_token, cache=cache)        # then token by token

Rows of a batch may begin with padding: `cache.first = count` before the padded tokens come. A cache is changed by the
forward that it is handed to. Where gradients are recorded, it holds the graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.nn._buffer import TokenBuffer
from attensor.nn._shapes import check_range
from attensor.ops._checks import check_devices, check_integers, check_tensor, checked, is_readable

__all__ = ["Cache", "StateCache", "TokenCache"]

_PLACE = ("length", "first")


class Cache(ABC):
    """The past of `batch_size` sequences that have the same length, padding at their beginning included.

    Attributes:
        length: tokens seen so far.
        can_crop: whether `crop` may go back to any earlier length.
        fits: identity of the layer that it is known to fit; 0 if of none.
    """

    length: int = 0
    fits: int = 0
    can_crop: bool = True
    _first: Tensor | None = None  # [B]; None as long as no row begins with padding
    _last_padded: int | None = 0  # the largest of `first`, known without asking the device; None until it is asked

    @property
    def first(self) -> Tensor:
        """[B], int64: how many tokens of padding each row begins with: its first real token's place."""
        return self._any.new_zeros(self.batch_size, dtype=torch.int64) if self._first is None else self._first

    @first.setter
    def first(self, first: Tensor) -> None:
        check_tensor(name := type(self).__name__, "first", first)
        check_integers(name, "first", first, first)
        if first.is_meta and not self._any.is_meta:
            raise ValueError(f"{name}: first must hold numbers, got a meta tensor; use one on {self.device}.")
        if first.shape != (self.batch_size,):
            raise ShapeError(f"{name}: first must be [B] = [{self.batch_size}], got {list(first.shape)}.")
        self._first, self._last_padded = first.to(device=self._any.device, dtype=torch.int64), None
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
        return torch.arange(start, end, device=self._first.device) >= self._first[:, None]

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
        self._replace(held)
        self.length = length
        self.first = state_dict["first"]

    @checked
    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row `index[i]` was; rows may repeat or vanish (beam search).

        Args:
            index: [new batch size], integers.
        Raises:
            ShapeError, TypeError, ValueError: another rank, no integers, rows that are not there (seen on a CPU).
        """
        check_integers(name := f"{type(self).__name__}.reorder", "index", index, index)
        if index.is_meta and not self._any.is_meta:
            raise ValueError(f"{name}: index must hold numbers, got a meta tensor; use one on {self.device}.")
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

    @checked
    def check_crop(self, length: int) -> None:
        """Refuse what `crop` refuses, and change nothing.

        Raises:
            ValueError: see `crop`.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"{type(self).__name__}.crop: length must be in [0, {self.length}], got {length}.")

    def _learn_padding(self) -> None:
        """Look once how far padding reaches: outside of compiled graphs, which would have to stop for it."""
        if self._first is None or self._last_padded is not None or torch.compiler.is_compiling():
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


def _check_sizes(cache: Cache, sizes: Mapping[str, tuple[int, ...]]) -> None:
    if not sizes:
        raise ValueError(f"{type(cache).__name__}: sizes must name a tensor, got none; see new_cache() of a layer.")
    check_range(cache, 0, **sizes)


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
        _check_sizes(self, sizes)
        kept = windows if isinstance(windows, Mapping) else dict.fromkeys(sizes, windows)
        typed, factory = dtype is not None, partial(torch.empty, device=device, dtype=dtype)
        self._buffers = {
            name: TokenBuffer(factory(batch_size, 0, *size), kept.get(name), max_length, is_typed=typed)
            for name, size in sizes.items()
        }
        self.can_crop = all(buffer.window is None for buffer in self._buffers.values())

    def append(self, **new: Tensor) -> dict[str, Tensor]:
        """Add the entries of new tokens to every tensor.

        Args:
            new: [B, T, *sizes] by name.
        Returns:
            By name what the new tokens may need, they last: [B, held before + T, *sizes]; `window - 1` before at most.
        Raises:
            ShapeError: a name is missing or unknown, or the batch, the number of tokens or an entry's sizes are wrong.
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
        self.length += tokens
        return {name: self._buffers[name].append(tensor) for name, tensor in new.items()}

    @checked
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
    def _any(self) -> Tensor:
        return next(iter(self._buffers.values())).storage

    def _crop(self, length: int) -> None:
        for buffer in self._buffers.values():
            buffer.keep(length - self.length + buffer.held.shape[1])

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
        start: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_range(self, 0, batch_size=batch_size)
        _check_sizes(self, sizes)
        numbers = (start or {}).values()
        if any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in numbers):
            raise TypeError(f"StateCache: start must be numbers by name, got {start!r:.80}.")
        self._is_typed = dtype is not None
        made: dict[str, Any] = {"device": device, "dtype": torch.promote_types(dtype or torch.float32, torch.float32)}
        self._start = dict.fromkeys(sizes, 0.0) | dict(start or {})
        self.states = {name: torch.full((batch_size, *size), self._start[name], **made) for name, size in sizes.items()}

    @checked
    def update(self, tokens: int, **states: Tensor) -> None:
        """Take the states, by name, after `tokens` more tokens.

        Raises:
            ShapeError: a name is unknown, or a state has other sizes. ValueError: fewer than 0 tokens.
        """
        check_range(name := "StateCache.update", 0, tokens=tokens)
        for key, state in states.items():
            check_tensor(name, key, state)
            held = self.states.get(key)
            if held is None or state.shape != held.shape:
                wanted = ", ".join(f"{own} {list(x.shape)}" for own, x in self.states.items())
                raise ShapeError(f"{name}: states must be {wanted}, got {key} {list(state.shape)}.")
        self.states.update(states)
        self.length += tokens

    @checked
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

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self.states)

    def _sizes(self, name: str, length: int) -> list[int]:
        return list(self.states[name].shape[1:])

    def _replace(self, held: Mapping[str, Tensor]) -> None:
        for name, old in self.states.items():
            dtype = old.dtype if self._is_typed else torch.promote_types(held[name].dtype, torch.float32)
            self.states[name] = held[name].to(old.device, dtype)
