"""The part of TransNormerLLM's block that no other family has: an MLP without activation.

Source: arXiv:2307.14995, section 3.1 (SGLU, equation 12).
"""

from __future__ import annotations

from torch import Tensor

from attensor.models.language.decoder import GatedMLP

__all__ = ["SimpleGatedMLP"]


class SimpleGatedMLP(GatedMLP):
    """`down(gate(x) * up(x))` without any activation (SGLU), arXiv:2307.14995, equation 12."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        out: Tensor = self.down_proj(self.gate_proj(hidden_states) * self.up_proj(hidden_states))
        return out
