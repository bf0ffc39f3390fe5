"""Softmax attention over the last few tokens: cost and decode state do not grow with the context."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attensor.nn._carried import refuse_bidirectional
from attensor.nn._shapes import check_range
from attensor.nn.attention_weights import AttentionWeights
from attensor.nn.cache import TokenCache
from attensor.nn.mixer import Heads
from attensor.nn.padding import bounds_of_padding
from attensor.nn.softmax_attention import SoftmaxAttention
from attensor.ops import neighborhood_attention

__all__ = ["SlidingWindowAttention"]


class SlidingWindowAttention(SoftmaxAttention):
    """Every token attends to itself and the `window_size - 1` tokens before it.

    Cost O(T window_size C); decoding keeps `window_size` keys and values. L layers reach L (window_size - 1) tokens
    back. Projections, rotary positions and grouped heads as in `SoftmaxAttention`.

    Args:
        hidden_size: channels C.
        num_heads: query heads H.
        window_size: keys that a token sees, itself included.
        num_kv_heads: key/value heads; H if None.
        head_dim: channels of a head; C / H if None.
        rotary_base: base of the rotary positions; None for no positions.
        qkv_bias, out_bias: see `SoftmaxAttention`.
        device, dtype: of the parameters.
    Source: arXiv:2004.05150, section 3.1 (sliding window), here causal.
    """

    window_size: int
    shown = (*SoftmaxAttention.shown, "window_size")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        window_size: int = 64,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary_base: float | None = 10_000.0,
        qkv_bias: bool = False,
        out_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            hidden_size,
            num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rotary_base=rotary_base,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            device=device,
            dtype=dtype,
        )
        check_range(self, 1, window_size=window_size)
        self.window_size = window_size

    @classmethod
    def _options_of(cls, weights: AttentionWeights) -> dict[str, Any]:
        refuse_bidirectional(cls, weights.is_causal)
        window = {} if weights.window_size is None else {"window_size": weights.window_size}
        return super()._options_of(weights) | window

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """Values of the symbols of the card's formulas for an input of that size."""
        sizes = super().cost_sizes(space)
        window = min(self.window_size, sizes["T"])
        # the first tokens of a sequence have fewer before them
        return {**sizes, "W": window, "M": round(window - window * (window - 1) / (2 * sizes["T"]))}

    def attend(self, heads: Heads, *, cache: TokenCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Attention within the window, over the tokens and what the cache holds, padding left out: [B, T, H, K]."""
        q, k, v, *_ = heads
        if cache is None:
            return self._slide(q, k, v, cu_seqlens)
        if q.shape[1] == 1:
            return super().attend(heads, cache=cache)
        k, v = cache.append(keys=k, values=v).values()
        real = cache.real(cache.length - k.shape[1], cache.length)
        before = k.shape[1] - q.shape[1]
        # the cached tokens ask nothing: their queries are zeros and their outputs are dropped
        q = torch.cat([q.new_zeros(q.shape[0], before, *q.shape[2:]), q], 1)
        if real is None:
            return self._slide(q, k, v)[:, before:]
        q, k, v = (x.flatten(0, 1)[None] for x in (q, k, v))
        out = torch.unflatten(self._slide(q, k, v, bounds_of_padding(real))[0], 0, real.shape)
        return torch.where(real[..., None, None], out, 0)[:, before:]

    def _slide(self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        out: Tensor = neighborhood_attention(
            q, k, v, window_size=self.window_size, is_causal=True, cu_seqlens=cu_seqlens
        )
        return out
