"""The token mixer of TransNormerLLM: lightning attention with a linear gate, decays by layer, positions in layer 0."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn.lightning import LightningAttention, Slopes

__all__ = ["TransNormerAttention"]


class TransNormerAttention(LightningAttention):
    """Gated linear attention with one fixed decay per head and layer.

        q = silu(W_q x)   k = silu(W_k x)   v = W_v x   u = W_u x        y = W_o (u * norm(lightning(q, k, v)))

    No scaling of the scores; the norm has no weight and runs over all heads. With LRPE every channel c of queries and
    keys becomes x cos(theta_c t) and x sin(theta_c t), so that q . k = sum_c q_c k_c cos(theta_c (t - s)) and the state
    has twice the rows. Cost O(T (chunk + K) V) per head; decoding keeps one matrix per head.

    Keys of the state_dict: `{q,k,v,g,o}_proj.weight` and, with LRPE, `theta` [H, 1, K].

    Args:
        hidden_size: channels C.
        num_heads: heads H.
        use_lrpe: learned relative positions on queries and keys; None: in layer 0 alone, the paper's choice.
        slopes: of the decays, see `decay_slopes`.
        layer_index: l, from 0; deeper layers forget more slowly.
        num_layers: L.
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels, unknown slopes, or a layer_index outside the stack.
    Source: arXiv:2307.14995, equations 4 to 10 (LRPE: equation 9), decays as in the authors' code.
    """

    _norm = "simple-rms"
    _gate = "linear"

    shown = (*LightningAttention.shown, "uses_positions")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        use_lrpe: bool | None = None,
        slopes: Slopes = "alibi",
        layer_index: int = 0,
        num_layers: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            hidden_size,
            num_heads,
            slopes=slopes,
            layer_index=layer_index,
            num_layers=num_layers,
            device=device,
            dtype=dtype,
        )
        self.uses_positions = layer_index == 0 if use_lrpe is None else use_lrpe
        if self.uses_positions:
            self.theta = nn.Parameter(torch.empty(num_heads, 1, self.key_dim, device=device, dtype=dtype))
            self.reset_own_parameters()

    def activate(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """SiLU of queries and keys; values stay as they are."""
        return F.silu(q), F.silu(k), v

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        """LRPE: x [B, T, H, K] to [B, T, H, 2 K], with angles in at least float32; positions [T] or [B, T]."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        angles = positions.to(dtype)[..., None, None] * self.theta.to(dtype).squeeze(1)  # [T, H, K] or [B, T, H, K]
        x_exact = x.to(dtype)
        return torch.cat([x_exact * angles.cos(), x_exact * angles.sin()], -1).to(x.dtype)

    def reset_own_parameters(self) -> None:
        """Set the angles of LRPE to 10000^(-2 j / C), j counting channels over all heads."""
        if not self.uses_positions:
            return
        channels = torch.arange(self.num_heads * self.key_dim, device=self.theta.device, dtype=torch.float64)
        with torch.no_grad():
            self.theta.copy_((10_000.0 ** (-2 * channels / self.hidden_size)).view_as(self.theta))
