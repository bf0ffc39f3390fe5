"""What a layer keeps of the past while it decodes: tensors of every token, recurrent states, or both.

    cache = layer.new_cache(batch_size, max_length)
    layer(prompt, cache=cache)            # prefill, in any number of pieces
    layer(next_token, cache=cache)        # then token by token

Rows of a batch may begin with padding: `cache.first = count` before the padded tokens come. A cache is changed by the
forward that it is handed to. Where gradients are recorded, it holds the graph.

    cache.make_static(max_length)         # from now on of fixed size, so that a compiled step is one graph for all
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.nn._buffer import Ring, TokenBuffer
from attensor.nn._shapes import check_range
from attensor.nn.base_cache import Cache
from attensor.ops._checks import check_devices, check_tensor, checked

__all__ = ["Cache", "StateCache", "TokenCache"]


def _check_sizes(cache: Cache, sizes: Mapping[str, tuple[int, ...]]) -> None:
    if not sizes:
        raise ValueError(f"{type(cache).__name__}: sizes must name a tensor, got none; see new_cache() of a layer.")
    by_name: dict[str, Any] = dict(sizes)
    check_range(cache, 0, **by_name)


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
            ShapeError: a name is unknown, or a state has other sizes. ValueError: fewer than 0 tokens, or gradients are
                recorded of the states of a static cache.
        """
        check_range(name := "StateCache.update", 0, tokens=tokens)
        for key, state in states.items():
            check_tensor(name, key, state)
            held = self.states.get(key)
            if held is None or state.shape != held.shape:
                wanted = ", ".join(f"{own} {list(x.shape)}" for own, x in self.states.items())
                raise ShapeError(f"{name}: states must be {wanted}, got {key} {list(state.shape)}.")
        if self.is_static:
            self._check_inference(**states)
            for key, state in states.items():
                if self.states[key].dtype == state.dtype:
                    self.states[key].copy_(state)
                else:  # the first tokens tell the dtype
                    self.states[key] = state.clone()
        else:
            self.states.update(states)
        self._advance(tokens)

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
