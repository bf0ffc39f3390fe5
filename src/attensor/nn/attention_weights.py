"""The weights of a softmax attention, as a swap carries them from one layer to another."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attensor.nn.rotary import Frequencies

__all__ = ["AttentionWeights"]


@dataclass(frozen=True)
class AttentionWeights:
    """Projections of H query heads and Hkv key/value heads of width D, each `[out, in]` as in `nn.Linear`.

    Attributes:
        q: [H D, C].
        k, v: [Hkv D, C].
        out: [C, H D].
        q_bias, k_bias, v_bias, out_bias: one number for each row; None without.
        num_heads: H.
        num_kv_heads: Hkv.
        head_dim: D.
        rotary_base: of positions that turn halves of a head against each other; None without.
        is_causal: a token sees itself and what comes before it.
        window_size: of a causal attention, tokens that a token sees, itself included; None for all. Layers with a
            window take it over, others see what they see.
        frequencies: how fast each pair of channels turns, where that is more than `rotary_base` says; layers whose
            positions come from the model around them need neither.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    q_bias: Tensor | None
    k_bias: Tensor | None
    v_bias: Tensor | None
    out_bias: Tensor | None
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_base: float | None
    is_causal: bool
    window_size: int | None = None
    frequencies: Frequencies | None = None
