"""Lightning attention: linear attention whose heads forget at fixed rates, some fast and some slow."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.nn._shapes import check_range
from attensor.nn.linear_attention import Gate, LinearAttention, Norm
from attensor.ops._checks import checked

__all__ = ["LightningAttention", "Slopes", "check_slopes", "decay_slopes"]

Slopes = Literal["alibi", "minimax", "linear"]


def check_slopes(name: str, slopes: str, layer_index: int, num_layers: int) -> None:
    """Refuse unknown slopes and a layer outside its stack; `name` says whose they are.

    Raises:
        ValueError: one of the two.
    """
    if slopes not in (known := get_args(Slopes)):
        raise ValueError(f"{name}: slopes must be one of {', '.join(map(repr, known))}, got {slopes!r}.")
    check_range(name, 1, num_layers=num_layers)
    if not 0 <= layer_index < num_layers:
        raise ValueError(f"{name}: layer_index must be in [0, num_layers = {num_layers}), got {layer_index}.")


@checked
def decay_slopes(
    num_heads: int, slopes: Slopes = "alibi", *, layer_index: int = 0, num_layers: int = 1, device: torch.device
) -> Tensor:
    """How fast each head forgets: a token's weight shrinks by `exp(-slope)` per step.

    `"alibi"`: 2^(-8 h / H) for h = 1 .. H when H is a power of two, else those of the power of two below, filled up
    with every second one of twice as many; times 1 - l / (L - 1) + 1e-5 in layer l of L (TransNormerLLM's code).
    `"minimax"`: 2^(-8 h / H) for any H, times 1 - l / (L - 1 + 1e-5) + 1e-5 (MiniMax in transformers).
    `"linear"`: (8 / H) h for h = 0 .. H - 1, times 1 - l / L (the paper's formula as fla reads it: head 0 keeps all).

    Args:
        num_heads: H.
        slopes: which of the three.
        layer_index: l, from 0.
        num_layers: L.
        device: of the result.
    Returns:
        [H], float64, >= 0.
    Raises:
        ValueError: unknown slopes, or a layer_index outside the stack.
    Source: arXiv:2307.14995, section 3.1; ALiBi arXiv:2108.12409; MiniMax arXiv:2501.08313.
    """
    check_range("decay_slopes", 1, num_heads=num_heads)
    check_slopes("decay_slopes", slopes, layer_index, num_layers)
    if slopes == "linear":
        heads = torch.arange(num_heads, device=device, dtype=torch.float64)
        return heads * (8 / num_heads * (1 - layer_index / num_layers))
    if slopes == "minimax":
        exponents = torch.arange(1, num_heads + 1, device=device, dtype=torch.float64) / num_heads
        return torch.exp2(-8 * exponents) * (1 - layer_index / (num_layers - 1 + 1e-5) + 1e-5)
    power = 1 << (num_heads.bit_length() - 1)
    exponents = torch.arange(1, power + 1, device=device, dtype=torch.float64) / power
    if power < num_heads:
        between = torch.arange(1, 2 * (num_heads - power) + 1, 2, device=device, dtype=torch.float64) / (2 * power)
        exponents = torch.cat([exponents, between])
    layer_factor = 1 - layer_index / max(num_layers - 1, 1) + 1e-5
    return torch.exp2(-8 * exponents) * layer_factor


class LightningAttention(LinearAttention):
    """Linear attention with one fixed decay per head: the layer of MiniMax-Text-01.

    SiLU on queries, keys and values, no scaling of the scores, RMSNorm over all heads together, sigmoid output gate.
    Cost O(T (chunk + K) V) per head; decoding keeps one [K, V] matrix per head.

    Args:
        hidden_size: channels C.
        num_heads: heads H.
        slopes: `"alibi"`, `"minimax"` or `"linear"`, see `decay_slopes`.
        layer_index: place in the stack, from 0; deeper layers forget more slowly.
        num_layers: layers in the stack.
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels, unknown slopes, or a layer_index outside the stack.
    Source: arXiv:2401.04658, section 3; arXiv:2405.17381; layer arXiv:2501.08313, section 2.2.
    """

    scale = 1.0
    _norm: Norm = "rms-all-heads"
    _gate: Gate = "sigmoid"

    shown = (*LinearAttention.shown, "slopes", "layer_index", "num_layers")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        slopes: Slopes = "alibi",
        layer_index: int = 0,
        num_layers: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, num_heads, norm=self._norm, output_gate=self._gate, device=device, dtype=dtype)
        check_slopes(type(self).__name__, slopes, layer_index, num_layers)
        self.slopes, self.layer_index, self.num_layers = slopes, layer_index, num_layers

    def activate(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """SiLU of queries, keys and values alike."""
        return F.silu(q), F.silu(k), F.silu(v)

    def log_decay(self, hidden_states: Tensor) -> Tensor:
        """Minus the slopes: [H]."""
        # made at each call: a buffer would follow .to(bfloat16), in which slow decays are lost
        slopes = decay_slopes(
            self.num_heads,
            self.slopes,
            layer_index=self.layer_index,
            num_layers=self.num_layers,
            device=hidden_states.device,
        )
        return -slopes.to(torch.promote_types(hidden_states.dtype, torch.float32))
