"""Room for the tokens of one tensor in a cache: appended at the end, dropped at the start by a window."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.nn._shapes import check_range

__all__ = ["TokenBuffer"]


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

    def append(self, new: Tensor) -> Tensor:
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
