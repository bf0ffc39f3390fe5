"""Learned biases of attention scores that depend on the offset between two cells of a block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["RelativePositionBias"]


class RelativePositionBias(nn.Module):
    """One number for each head and offset: bias[h, query, key] = table[h, key - query + block_size - 1].

    Args:
        num_heads: heads H.
        block_size: largest side P of a block.
        device, dtype: of the table.

    Attributes:
        relative_position_bias_table: [H, 2 P - 1, 2 P - 1].
    Source: arXiv:2204.01697, section 3.2 (table layout of its weights).
    """

    def __init__(
        self,
        num_heads: int,
        block_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.block_size = block_size
        offsets = 2 * block_size - 1
        self.relative_position_bias_table = nn.Parameter(
            torch.empty(num_heads, offsets, offsets, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with standard deviation 0.02."""
        nn.init.normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, height: int, width: int) -> Tensor:
        """Biases in a block of height x width cells, neither above `block_size`: [H, S, S], S = height * width."""
        device = self.relative_position_bias_table.device
        down, right = self._offsets(height, device), self._offsets(width, device)
        bias = self.relative_position_bias_table[:, down[:, None, :, None], right[None, :, None, :]]  # [H, h, w, h, w]
        return bias.flatten(3, 4).flatten(1, 2)

    def _offsets(self, side: int, device: torch.device) -> Tensor:
        cells = torch.arange(side, device=device)
        return cells - cells[:, None] + self.block_size - 1  # [query, key]
