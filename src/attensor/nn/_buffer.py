"""Room for the tokens of one tensor in a cache: appended at the end, dropped at the start by a window."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.nn._shapes import check_range

__all__ = ["Ring", "TokenBuffer"]


class TokenBuffer:
    """The last tokens of one tensor, [B, tokens, *sizes].

    Appending costs O(new tokens) on average: room is reserved at once (`max_length`) or by doubling.

    Args:
        empty: [B, 0, *sizes], for sizes, device and dtype.
        is_typed: keep that dtype; else the tokens' own, the wider one where they are of several.
        window: keep only that many tokens; all if None.
        max_length: tokens to reserve room for at once.
    """

    def __init__(self, empty: Tensor, window: int | None, max_length: int | None, *, is_typed: bool = True) -> None:
        check_range("TokenCache", 1, windows=window)
        self.window, self.is_typed = window, is_typed
        room = max_length or 0
        if window is not None:
            room = min(room, 2 * window)
        self.storage = empty.new_empty(empty.shape[0], room, *empty.shape[2:])
        self._start = self._end = 0

    @property
    def held(self) -> Tensor:
        """[B, tokens held, *sizes]."""
        return self.storage[:, self._start : self._end]

    @property
    def nbytes(self) -> int:
        """Bytes of what is held."""
        return self.held.nbytes

    @property
    def slides(self) -> bool:
        """Whether it goes on for ever in the same room."""
        return self.window is not None

    def append(self, new: Tensor, in_any_order: bool = False) -> Tensor:
        """All tokens that the new ones may need, the new ones last; with a window at most `window - 1` before them."""
        if self.window is not None:
            self._start = max(self._start, self._end - self.window + 1)
        if not self.is_typed and new.dtype != self.storage.dtype:
            is_new = self._end == self._start
            self.storage = self.storage.to(new.dtype if is_new else torch.promote_types(new.dtype, self.storage.dtype))
        if torch.is_grad_enabled():
            # writing in place would destroy what backward needs
            self.replace(torch.cat([self.held, new.to(self.storage.dtype)], 1))
        else:
            self._write(new)
        needed = self.held
        if self.window is not None:
            self._start = max(self._start, self._end - self.window)
            if self.storage.shape[1] > 2 * self.window:
                self._make_room(2 * self.window)
        return needed.to(new.dtype)

    def replace(self, tokens: Tensor) -> None:
        """Hold these tokens instead."""
        self.storage = tokens.to(self.storage.device, self.storage.dtype if self.is_typed else tokens.dtype)
        self._start, self._end = 0, tokens.shape[1]

    def keep(self, tokens: int) -> None:
        """Forget all but the first `tokens` held ones."""
        self._end = self._start + max(tokens, 0)

    def _write(self, new: Tensor) -> None:
        tokens, room = new.shape[1], self.storage.shape[1]
        if self._end + tokens > room:
            held = self._end - self._start
            self._make_room(max(room if self.window is not None else 2 * room, 2 * held, held + tokens))
        self.storage[:, self._end : self._end + tokens] = new
        self._end += tokens

    def _make_room(self, room: int) -> None:
        held = self.held
        unused = held.new_empty(held.shape[0], room - held.shape[1], *held.shape[2:])
        self.storage = torch.cat([held, unused], 1)
        self._start, self._end = 0, held.shape[1]


class Ring:
    """The same in memory of constant size, [B, size, *sizes], written in place: token p is in slot p modulo size.

    Sizes and addresses stay, so that a compiled graph serves every step. Slots without a token hold zeros.

    Args:
        held: [B, tokens, *sizes], the last tokens.
        window: tokens that are needed; all if None.
        max_length: tokens in all.
        seen: [], how many there have been; its owner counts on after `append`.
        is_typed: keep the dtype; else the tokens' own, the wider one where they are of several.
    """

    def __init__(self, held: Tensor, window: int | None, max_length: int, seen: Tensor, *, is_typed: bool) -> None:
        self.window, self.is_typed, self._seen = window, is_typed, seen
        self.slides = window is not None and window < max_length
        self.storage = held.new_empty(0)
        self._size = window if window is not None and self.slides else max_length
        self.replace(held)

    @property
    def held(self) -> Tensor:
        """[B, tokens held, *sizes]."""
        length = int(self._seen)
        slots = torch.arange(max(length - self._size, 0), length, device=self.storage.device) % self._size
        return self.storage.index_select(1, slots)

    @property
    def nbytes(self) -> int:
        """Bytes of what is held, slots without a token left out."""
        return self.storage[:, : min(int(self._seen), self._size)].nbytes

    def append(self, new: Tensor, in_any_order: bool = False) -> Tensor:
        """All slots, or all tokens that the new ones may need.

        Args:
            new: [B, T, *sizes].
            in_any_order: one new token may have the slots as they are, which costs nothing; else tokens are sorted, the
                new ones last: [B, size, *sizes], or with a window `window - 1 + T` of them.
        """
        if not self.is_typed and new.dtype != self.storage.dtype:
            self.storage = self.storage.to(torch.promote_types(new.dtype, self.storage.dtype))
        tokens, added = new.shape[1], new.to(self.storage.dtype)
        if tokens == 1 and in_any_order:
            self.storage.index_copy_(1, (self._seen % self._size)[None], added)
            return self.storage.to(new.dtype)
        slots = torch.arange(self._size, device=self.storage.device)
        needed = torch.cat([self.storage.index_select(1, (self._seen + slots) % self._size), added], 1)
        last = added[:, -self._size :]
        taken = slots[: last.shape[1]] + (tokens - last.shape[1])
        self.storage.index_copy_(1, (self._seen + taken) % self._size, last)
        return needed[:, 1 if self.slides else tokens :].to(new.dtype)

    def replace(self, tokens: Tensor) -> None:
        """Hold these last tokens instead."""
        tokens = tokens.to(self.storage.device, self.storage.dtype if self.is_typed else tokens.dtype)
        self.storage = tokens.new_zeros(tokens.shape[0], self._size, *tokens.shape[2:])
        last = tokens.detach()[:, -self._size :]
        places = torch.arange(-last.shape[1], 0, device=tokens.device) + self._seen
        self.storage.index_copy_(1, places % self._size, last)

    def keep(self, tokens: int) -> None:
        """Forget all but the first `tokens` held ones; in a window, all or none."""
        if not self.slides or tokens <= 0:
            self.storage[:, max(tokens, 0) :] = 0
