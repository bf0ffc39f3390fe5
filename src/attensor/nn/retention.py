"""Retention: linear attention whose heads forget at fixed rates, with rotated queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.nn._shapes import head_dim
from attensor.nn.linear_attention import LinearAttention

__all__ = ["Retention"]


class Retention(LinearAttention):
    """The multi-scale retention of RetNet: head h multiplies its state by `1 - 2^(-5 - h)` at each token.

    Rotary queries and keys, values twice as wide, a norm per head without weights, a swish output gate.
    Cost O(T (chunk + K) V) per head; decoding keeps one [K, V] matrix per head. About 8 C^2 parameters.

    Args:
        hidden_size: channels C; keys have C of them over all heads, values 2 C.
        num_heads: heads H; C / H must be even.
        device, dtype: of the parameters.
    Source: arXiv:2307.08621, equations 5 to 8 (rotation without xPos's scaling, as in the authors' code).
    """

    uses_positions = True

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if head_dim(self, hidden_size, num_heads) % 2:
            raise ValueError(
                f"Retention: hidden_size / num_heads must be even, as channels turn in pairs, got {hidden_size} / "
                f"{num_heads}; change one of them."
            )
        super().__init__(
            hidden_size,
            num_heads,
            value_size=2 * hidden_size,
            norm="layer",
            output_gate="swish",
            device=device,
            dtype=dtype,
        )

    def log_decay(self, hidden_states: Tensor) -> Tensor:
        """One for each head, the same for every token: [H]."""
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        heads = torch.arange(self.num_heads, device=hidden_states.device, dtype=dtype)
        return torch.log1p(-torch.exp2(-5 - heads))
