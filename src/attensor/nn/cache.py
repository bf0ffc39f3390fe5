"""What a layer keeps of the past while it decodes: keys and values, or a recurrent state.

    cache = layer.new_cache(batch_size, max_length)
    layer(prompt, cache=cache)            # prefill, in any number of pieces
    layer(next_token, cache=cache)        # then token by token

A cache is changed by the forward that it is handed to. Where gradients are recorded, it holds the graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from attensor.errors import ShapeError

__all__ = ["Cache", "KeyValueCache", "StateCache"]


class Cache(ABC):
    """The past of `batch_size` sequences that have the same length.

    Attributes:
        length: tokens seen so far.
    """

    length: int = 0
    _free_dimensions = 1  # leading dimensions that may differ when contents are loaded: the batch

    @property
    def nbytes(self) -> int:
        """Bytes of what the next token needs (room reserved for later tokens is not counted)."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def state_dict(self) -> dict[str, Tensor]:
        """The contents as contiguous tensors, `length` included, ready for safetensors."""
        # copies: the cache goes on writing into its own memory
        held = {n: t.detach().clone(memory_format=torch.contiguous_format) for n, t in self._tensors().items()}
        return {"length": torch.tensor(self.length), **held}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take over contents exported by `state_dict` of a cache of the same layer; the batch size may differ.

        Raises:
            ShapeError: names or sizes are not those of this cache.
        """
        expected = self._tensors()
        names = {"length", *expected}
        if set(state_dict) != names:
            raise ShapeError(f"{type(self).__name__}: state_dict must hold {sorted(names)}, got {sorted(state_dict)}.")
        held = {name: tensor.clone() for name, tensor in state_dict.items() if name != "length"}
        for name, tensor in held.items():
            own = expected[name].shape[self._free_dimensions :]
            if tensor.dim() != expected[name].dim() or tensor.shape[self._free_dimensions :] != own:
                raise ShapeError(
                    f"{type(self).__name__}: {name} must end in {list(own)}, got {list(tensor.shape)}; "
                    "was it exported by another layer?"
                )
        self._replace(held)
        self.length = int(state_dict["length"])

    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row `index[i]` was; rows may repeat or vanish (beam search).

        Args:
            index: [new batch size], integers.
        """
        self._replace({n: t.index_select(0, index.to(t.device)) for n, t in self._tensors().items()})

    @abstractmethod
    def crop(self, length: int) -> None:
        """Forget everything after the first `length` tokens.

        Raises:
            ValueError: the contents no longer allow it.
        """

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """What is held, by name; the batch is the first dimension."""

    @abstractmethod
    def _replace(self, held: Mapping[str, Tensor]) -> None:
        """Hold these tensors instead."""

    def _check_crop(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"{type(self).__name__}.crop: length must be in [0, {self.length}], got {length}.")


class KeyValueCache(Cache):
    """Keys and values of all tokens, or of the last `window` tokens.

    Appending costs O(new tokens) on average: room is reserved at once (`max_length`) or by doubling.

    Args:
        batch_size: rows.
        num_heads: key/value heads H.
        key_dim: width K of a key head.
        value_dim: width V of a value head; `key_dim` if None.
        max_length: tokens to reserve room for at once; a longer sequence makes the cache grow.
        window: keep only that many tokens, so that the state stays bounded; all if None.
        device: where the contents live.
        dtype: what they are stored in; `append` returns them in the dtype of what it is given.
    """

    _free_dimensions = 2  # batch and tokens

    def __init__(
        self,
        batch_size: int,
        num_heads: int,
        key_dim: int,
        *,
        value_dim: int | None = None,
        max_length: int | None = None,
        window: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.window = window
        room = max_length or 0
        if window is not None:
            room = min(room, 2 * window)
        value_dim = key_dim if value_dim is None else value_dim
        self._keys = torch.empty(batch_size, room, num_heads, key_dim, device=device, dtype=dtype)  # [B, room, H, K]
        self._values = torch.empty(batch_size, room, num_heads, value_dim, device=device, dtype=dtype)
        self._start = self._end = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens.

        Args:
            k: [B, T, H, K].
            v: [B, T, H, V].
        Returns:
            All keys and values that the new tokens may need, the new ones last: [B, held before + T, H, K] and V;
            with a window at most `window - 1` of those before.
        Raises:
            ShapeError: another batch size, number of heads or head width than the cache's.
        """
        for name, new, old in (("k", k, self._keys), ("v", v, self._values)):
            if new.shape[0] != old.shape[0] or new.shape[2:] != old.shape[2:]:
                raise ShapeError(
                    f"KeyValueCache.append: {name} must be [{old.shape[0]}, T, {old.shape[2]}, {old.shape[3]}], "
                    f"got {list(new.shape)}; make a cache with new_cache(batch_size={new.shape[0]})."
                )
        if self.window is not None:
            self._start = max(self._start, self._end - self.window + 1)
        if torch.is_grad_enabled():
            self._concatenate(k, v)
        else:
            self._write(k, v)
        self.length += k.shape[1]
        keys, values = self._held()
        if self.window is not None:
            self._start = max(self._start, self._end - self.window)
            if self._keys.shape[1] > 2 * self.window:
                self._make_room(2 * self.window)
        return keys.to(k.dtype), values.to(v.dtype)

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens; with a window only while the tokens before are still held.

        Raises:
            ValueError: longer than the contents, or the window has dropped tokens that would be needed.
        """
        self._check_crop(length)
        dropped = self.length - (self._end - self._start)
        if dropped and length not in (0, self.length):
            raise ValueError(
                f"KeyValueCache.crop: only the last {self.window} of {self.length} tokens are held, so that length "
                f"{length} cannot be restored; crop to 0 or keep a state_dict() of the earlier moment."
            )
        self._end = self._start + max(length - dropped, 0)
        self.length = length

    def _tensors(self) -> dict[str, Tensor]:
        keys, values = self._held()
        return {"keys": keys, "values": values}

    def _replace(self, held: Mapping[str, Tensor]) -> None:
        keys, values = held["keys"], held["values"]
        self._keys = keys.to(self._keys.device, self._keys.dtype)
        self._values = values.to(self._values.device, self._values.dtype)
        self._start, self._end = 0, keys.shape[1]

    def _held(self) -> tuple[Tensor, Tensor]:
        return self._keys[:, self._start : self._end], self._values[:, self._start : self._end]

    def _concatenate(self, k: Tensor, v: Tensor) -> None:
        # writing in place would destroy what backward needs
        keys, values = self._held()
        self._keys, self._values = torch.cat([keys, k.to(keys.dtype)], 1), torch.cat([values, v.to(values.dtype)], 1)
        self._start, self._end = 0, self._keys.shape[1]

    def _write(self, k: Tensor, v: Tensor) -> None:
        tokens, room = k.shape[1], self._keys.shape[1]
        if self._end + tokens > room:
            held = self._end - self._start
            self._make_room(max(room if self.window is not None else 2 * room, 2 * held, held + tokens))
        self._keys[:, self._end : self._end + tokens] = k
        self._values[:, self._end : self._end + tokens] = v
        self._end += tokens

    def _make_room(self, room: int) -> None:
        keys, values = self._held()
        batch, held = keys.shape[:2]
        self._keys = torch.cat([keys, keys.new_empty(batch, room - held, *keys.shape[2:])], 1)
        self._values = torch.cat([values, values.new_empty(batch, room - held, *values.shape[2:])], 1)
        self._start, self._end = 0, held


class StateCache(Cache):
    """A recurrent state of constant size.

    Args:
        batch_size: rows.
        num_heads: heads H.
        key_dim: K.
        value_dim: V.
        device: where the state lives.
        dtype: float32 if lower, as states accumulate.

    Attributes:
        state: [B, H, K, V], zeros at the start.
    """

    def __init__(
        self,
        batch_size: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dtype = torch.promote_types(dtype or torch.float32, torch.float32)
        self.state = torch.zeros(batch_size, num_heads, key_dim, value_dim, device=device, dtype=dtype)

    def update(self, state: Tensor, tokens: int) -> None:
        """Take the state after `tokens` more tokens."""
        self.state = state
        self.length += tokens

    def crop(self, length: int) -> None:
        """Forget everything (`length` 0) or nothing (`length` equal to the cache's own).

        Raises:
            ValueError: any other length: a recurrent state cannot be unwound.
        """
        self._check_crop(length)
        if length not in (0, self.length):
            raise ValueError(
                f"StateCache.crop: a recurrent state of {self.length} tokens cannot be unwound to {length}; "
                "crop to 0 and run the tokens again, or keep a state_dict() of the earlier moment."
            )
        if length == 0:
            self.state = torch.zeros_like(self.state)
        self.length = length

    def _tensors(self) -> dict[str, Tensor]:
        return {"state": self.state}

    def _replace(self, held: Mapping[str, Tensor]) -> None:
        self.state = held["state"].to(self.state.device, self.state.dtype)
