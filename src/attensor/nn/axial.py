"""Axial attention: along the rows in one layer, along the columns in the next."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.nn._shapes import check_range
from attensor.nn.grid_attention import GridMixer
from attensor.nn.mixer import Heads
from attensor.ops import block_attention

__all__ = ["AxialAttention"]


class AxialAttention(GridMixer):
    """Every cell attends to the cells of its own row (even layers) or its own column (odd layers).

    On a 3-D grid the axes take turns from the last to the first. Cost O(cells * length of the axis * C).
    Keys of the state_dict: `qkv.{weight,bias}`, `proj.{weight,bias}`.

    Args:
        hidden_size: channels C.
        num_heads: heads H.
        is_causal: a cell sees itself and what comes before it on its line (the paper's masked attention).
        layer_index: place in the stack, from 0.
        device, dtype: of the parameters.
    Source: arXiv:1912.12180, section 3.1.
    """

    ranks = (4, 5)

    shown = (*GridMixer.shown, "is_causal", "layer_index")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        is_causal: bool = False,
        layer_index: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, num_heads, device=device, dtype=dtype)
        check_range(self, 0, layer_index=layer_index)
        self.is_causal, self.layer_index = is_causal, layer_index

    def attend(self, heads: Heads) -> Tensor:
        """Attention along this layer's axis."""
        q, k, v, *_ = heads
        return block_attention(q, k, v, pattern="axial", axis=self._axis(q.dim() - 3), is_causal=self.is_causal)

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """Values of the symbols of the card's formulas for an input of that size."""
        return {**super().cost_sizes(space), "X": space[self._axis(len(space))]}

    def _axis(self, axes: int) -> int:
        return axes - 1 - self.layer_index % axes
