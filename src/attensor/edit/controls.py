"""Attention that a replacement must beat before it can claim anything: none, a mean, a window, a window and sinks.

They cost nothing to invent and next to nothing to run. A swap that does no better has shown nothing but that the model
does not need the attention it had.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from attensor.nn._shapes import check_range
from attensor.nn.cache import TokenCache
from attensor.nn.mixer import Heads
from attensor.nn.rotary import token_positions
from attensor.nn.softmax_attention import SoftmaxAttention
from attensor.ops import softmax_attention
from attensor.ops._checks import checked

__all__ = ["CONTROLS", "ControlAttention", "controls"]

CONTROLS = ("no attention", "mean of values", "window only", "window + sinks")


class ControlAttention(SoftmaxAttention):
    """Softmax attention whose scores are taken away, wholly or outside of a window; a control, not a mechanism.

    Args:
        hidden_size: channels C.
        num_heads: heads H.
        how: `"none"`: heads give zeros; `"mean"`: the mean of the values that a token may see; `"window"`: softmax over
            the nearest tokens.
        window_size: tokens that a query sees, itself included; half of them on each side where it is not causal.
        sinks: first tokens of every sequence that are seen too.
        attention: options of `SoftmaxAttention`.
    """

    shown = (*SoftmaxAttention.shown, "how", "span", "sinks")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        how: Literal["none", "mean", "window"],
        window_size: int = 8,
        sinks: int = 0,
        **attention: Any,
    ) -> None:
        super().__init__(hidden_size, num_heads, **attention)
        check_range(self, 1, window_size=window_size)
        check_range(self, 0, sinks=sinks)
        self.how, self.span, self.sinks = how, window_size, sinks

    def attend(self, heads: Heads, *, cache: TokenCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """[B, T, H, K]; memory of a mask over all pairs of tokens where there is a window."""
        k, v, mask = self._visible(heads, cache)
        if self.how == "none":
            return torch.zeros_like(heads.q)
        if self.how == "mean":
            q = torch.zeros_like(heads.q)
            mean: Tensor = softmax_attention(q, k, v, is_causal=self.is_causal, attn_mask=mask, cu_seqlens=cu_seqlens)
            return mean
        near = self._near(heads.q.shape[1], k.shape[1], cache, cu_seqlens)
        out: Tensor = softmax_attention(heads.q, k, v, attn_mask=near if mask is None else near & mask)
        return out

    def _near(self, queries: int, keys: int, cache: TokenCache | None, cu_seqlens: Tensor | None) -> Tensor:
        """Which keys a query sees: [B or 1, 1, T, keys]."""
        device = self.q_proj.weight.device
        place = torch.arange(keys, device=device)
        distance = place[keys - queries :, None] - place  # of a key before the query
        # half of the window lies behind the query where that may be seen
        before = self.span - 1 if self.is_causal else self.span // 2
        behind = 0 if self.is_causal else self.span - 1 - before
        near = ((distance <= before) & (distance >= -behind))[None]
        padded = cache is not None and cache.real(0, 1) is not None
        first = cache.first if padded and cache is not None else None
        positions = token_positions(keys, first=first, cu_seqlens=cu_seqlens, device=device)
        sink = (positions < self.sinks).view(-1, 1, keys)
        if self.is_causal:
            sink = sink & (distance >= 0)
        seen = near | sink
        if cu_seqlens is not None:
            sequence = torch.searchsorted(cu_seqlens, place, right=True)
            seen = seen & (sequence[:, None] == sequence)
        return seen[:, None]


@checked
def controls(window_size: int = 8, sinks: int = 4) -> dict[str, Any]:
    """Name -> what makes a layer of `AttentionWeights`, for the four arms of `CONTROLS`.

    Raises:
        ValueError: a window without a token, or a number of sinks below 0.
    """
    check_range("controls", 1, window_size=window_size)
    check_range("controls", 0, sinks=sinks)
    hows: tuple[dict[str, Any], ...] = (
        {"how": "none"},
        {"how": "mean"},
        {"how": "window", "window_size": window_size},
        {"how": "window", "window_size": window_size, "sinks": sinks},
    )
    return {name: partial(ControlAttention.from_attention, **how) for name, how in zip(CONTROLS, hows)}
