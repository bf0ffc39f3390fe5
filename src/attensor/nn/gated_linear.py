"""Linear attention that decides, from each token, how much of its state to forget: per head or per key channel."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn._shapes import half
from attensor.nn.linear_attention import LinearAttention

__all__ = ["GatedLinearAttention", "ScalarGatedLinearAttention"]

GATE_RANK = 16
GATE_NORMALIZER = 16.0  # the sixteenth root of the sigmoid: gates start near 1, so that memory starts long


class ScalarGatedLinearAttention(LinearAttention):
    """Linear attention with one data-dependent decay per head and token.

    `log decay = logsigmoid(W_g x + b_g) / 16`; widths, norm and output gate as in `GatedLinearAttention`, so that the
    two differ in the gate alone. Cost O(T (chunk + K) V) per head; decoding keeps one [K, V] matrix per head.

    Args:
        hidden_size: channels C, as many as all values together.
        num_heads: query heads H.
        num_kv_heads: key/value heads; H if None.
        key_size: channels of all query heads together; C / 2 if None.
        device, dtype: of the parameters.
    Source: arXiv:2405.21060, section 7 (Mamba-2's scalar gate), in the layer of arXiv:2312.06635 (its ablation).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        key_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            hidden_size,
            num_heads,
            num_kv_heads=num_kv_heads,
            key_size=half(self, hidden_size, num_heads) if key_size is None else key_size,
            output_gate="swish",
            device=device,
            dtype=dtype,
        )
        self.gk_proj = nn.Linear(hidden_size, self.num_kv_heads, device=device, dtype=dtype)

    def log_decay(self, hidden_states: Tensor) -> Tensor:
        """One for each key/value head: [B, T, Hkv]."""
        return _log_decay(self.gk_proj(hidden_states))


class GatedLinearAttention(LinearAttention):
    """Linear attention with one data-dependent decay per head, token and key channel.

    `log decay = logsigmoid(W_2 W_1 x + b) / 16` with W_1 of rank 16; norm per head, then a swish gate.
    Cost O(T (chunk + K) V) per head; decoding keeps one [K, V] matrix per head. About 4 C^2 parameters.

    Args:
        hidden_size: channels C, as many as all values together.
        num_heads: query heads H.
        num_kv_heads: heads of keys, gates and values; H if None.
        key_size: channels of all query heads together; C / 2 if None.
        norm: `"rms"` per head with a weight (fla), or `"layer"` without (the paper's first code).
        gate_bias: the output gate's projection has a bias.
        clamp_min: log decays below this, at most 0, are raised to it; none if None.
        device, dtype: of the parameters.
    Source: arXiv:2312.06635, section 4.4; state_dict keys of flash-linear-attention.
    """

    shown = (*LinearAttention.shown, "clamp_min")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        key_size: int | None = None,
        norm: Literal["rms", "layer"] = "rms",
        gate_bias: bool = False,
        clamp_min: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            hidden_size,
            num_heads,
            num_kv_heads=num_kv_heads,
            key_size=half(self, hidden_size, num_heads) if key_size is None else key_size,
            norm=norm,
            output_gate="swish",
            device=device,
            dtype=dtype,
        )
        if gate_bias:
            self.g_proj = nn.Linear(hidden_size, hidden_size, device=device, dtype=dtype)
        if clamp_min is not None and clamp_min > 0:
            raise ValueError(f"{type(self).__name__}: clamp_min must be at most 0, as log decays are, got {clamp_min}.")
        self.clamp_min = clamp_min
        self.gk_proj = nn.Sequential(
            nn.Linear(hidden_size, GATE_RANK, bias=False, device=device, dtype=dtype),
            nn.Linear(GATE_RANK, self.num_kv_heads * self.key_dim, device=device, dtype=dtype),
        )

    def log_decay(self, hidden_states: Tensor) -> Tensor:
        """One for each channel of the key/value heads: [B, T, Hkv, K]."""
        gate = self.gk_proj(hidden_states).unflatten(-1, (self.num_kv_heads, self.key_dim))
        log_decay = _log_decay(gate)
        return log_decay if self.clamp_min is None else log_decay.clamp_min(self.clamp_min)


def _log_decay(gate: Tensor) -> Tensor:
    return F.logsigmoid(gate.to(torch.promote_types(gate.dtype, torch.float32))) / GATE_NORMALIZER
