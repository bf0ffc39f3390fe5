"""Window and grid attention by turns: near cells in one layer, a coarse sample of all in the next; learned biases."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn._shapes import check_hidden_states, check_range, check_room
from attensor.nn.grid_attention import GridMixer
from attensor.nn.mixer import Heads
from attensor.ops import block_attention
from attensor.ops._checks import checked
from attensor.ops._free_sizes import completed, cropped, is_free, whole

__all__ = ["RelativePositionBias", "WindowGridAttention", "resized"]


class WindowGridAttention(GridMixer):
    """Attention within blocks of `block_size` x `block_size` cells, with learned relative biases.

    A block is a window of neighbouring cells, or a grid of cells that are spread evenly over the whole map.
    Cost O(cells * block_size^2 * C). Blocks shrink to the map where it is smaller.
    Keys of the state_dict: `qkv.*`, `proj.*`, `rel_pos.relative_position_bias_table`.

    Args:
        hidden_size: channels C.
        num_heads: heads H.
        block_size: side of a block in cells.
        pattern: `"window"`, `"grid"`, or `"alternate"`: windows in layers with an even index, else grids.
        relative_bias: learn a bias for each head and offset.
        layer_index: place in the stack, from 0.
        padding: what completes blocks at the lower and right border: `"hidden"`, which nobody sees, or `"visible"`,
            zeros before the projections that are attended to like cells (Swin, DaViT); blocks then never shrink.
        device, dtype: of the parameters.
    Source: arXiv:2204.01697, section 3.2; visible padding: arXiv:2204.03645, its official code.
    """

    ranks = (4,)

    shown = (*GridMixer.shown, "pattern", "block_size", "padding")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        block_size: int = 7,
        pattern: Literal["alternate", "window", "grid"] = "alternate",
        relative_bias: bool = True,
        layer_index: int = 0,
        padding: Literal["hidden", "visible"] = "hidden",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, num_heads, device=device, dtype=dtype)
        check_range(self, 1, block_size=block_size)
        check_range(self, 0, layer_index=layer_index)
        self.block_size, self.padding = block_size, padding
        self.pattern = pattern if pattern != "alternate" else "grid" if layer_index % 2 else "window"
        self.rel_pos = (
            RelativePositionBias(num_heads, block_size, device=device, dtype=dtype) if relative_bias else None
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Mix the cells of the map, completed to whole blocks where padding is visible: [B, height, width, C]."""
        if self.padding == "hidden":
            return super().forward(hidden_states)
        check_hidden_states(self, hidden_states, self.hidden_size, self.ranks)
        space = hidden_states.shape[1:3]
        tiled = completed(hidden_states, 1, [whole(side, self.block_size) for side in space])
        return cropped(super().forward(tiled), 1, space)

    def attend(self, heads: Heads) -> Tensor:
        """Attention within the blocks of this layer's pattern."""
        q, k, v, *_ = heads
        sides = self._fit(q.shape[1:-2])
        bias = None if self.rel_pos is None else self.rel_pos(*sides)
        return block_attention(q, k, v, pattern=self.pattern, block_size=sides, attn_mask=bias)

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """Values of the symbols of the card's formulas for an input of that size."""
        sizes = super().cost_sizes(space)
        window = math.prod(self._fit(space))
        padded = math.prod(whole(cells, side) for cells, side in zip(space, self._fit(space)))
        return {**sizes, "W": window, "M": round(window * padded / sizes["T"])}

    def _fit(self, space: tuple[int, ...]) -> tuple[int, int]:
        # of a free size nobody knows whether it is smaller; the cells that complete the block are hidden anyway
        keeps = self.padding == "visible" or is_free(*space)
        height, width = (self.block_size if keeps else min(self.block_size, n) for n in space)
        return height, width


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

    @checked
    def __init__(
        self,
        num_heads: int,
        block_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_range(self, 1, num_heads=num_heads, block_size=block_size)
        self.block_size = block_size
        offsets = 2 * block_size - 1
        check_room(self, num_heads * offsets**2, num_heads=num_heads, block_size=block_size)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty(num_heads, offsets, offsets, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with standard deviation 0.02."""
        nn.init.normal_(self.relative_position_bias_table, std=0.02)

    @checked
    def forward(self, height: int, width: int) -> Tensor:
        """Biases in a block of height x width cells, neither above `block_size`: [H, S, S], S = height * width.

        Raises:
            ValueError: a side that is no integer from 0 to `block_size`.
        """
        check_range(self, 0, self.block_size + 1, height=height, width=width)
        device = self.relative_position_bias_table.device
        down, right = self._offsets(height, device), self._offsets(width, device)
        bias = self.relative_position_bias_table[:, down[:, None, :, None], right[None, :, None, :]]  # [H, h, w, h, w]
        return bias.flatten(3, 4).flatten(1, 2)

    def _offsets(self, side: int, device: torch.device) -> Tensor:
        cells = torch.arange(side, device=device)
        return cells - cells[:, None] + self.block_size - 1  # [query, key]


def resized(table: Tensor, block_size: int) -> Tensor:
    """A table of biases [H, 2 P - 1, 2 P - 1] for blocks of another side: bilinear, in at least float32.

    Source: arXiv:2204.01697, appendix (fine-tuning at a higher resolution).
    """
    side = 2 * block_size - 1
    if table.shape[-1] == side:
        return table
    wide = table.to(torch.promote_types(table.dtype, torch.float32))[None]
    return F.interpolate(wide, size=(side, side), mode="bilinear", align_corners=False)[0].to(table.dtype)
