"""Parts of TransNormerLLM's block that no other family has: a norm without weights, an MLP without activation.

Source: arXiv:2307.14995, section 3.1 (SimpleRMSNorm, equation 13; SGLU, equation 12).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.models.language.decoder import GatedMLP

__all__ = ["SimpleGatedMLP", "SimpleRMSNorm"]


class SimpleRMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps)` over the last dimension, no weight; computed in at least float32.

    Args:
        eps: inside the root.
    Source: arXiv:2307.14995, equation 13; `eps` inside the root as in the published code.
    """

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., C] to [..., C], same dtype."""
        wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        return F.rms_norm(wide, wide.shape[-1:], eps=self.eps).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        """Options, for `print(layer)`."""
        return f"eps={self.eps}"


class SimpleGatedMLP(GatedMLP):
    """`down(gate(x) * up(x))` without any activation (SGLU), arXiv:2307.14995, equation 12."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        out: Tensor = self.down_proj(self.gate_proj(hidden_states) * self.up_proj(hidden_states))
        return out
