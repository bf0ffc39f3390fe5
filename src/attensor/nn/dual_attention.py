"""Dual attention: among the cells of windows in one layer, among channels over the whole map in the next."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from attensor.nn._shapes import check_range
from attensor.nn.grid_attention import GridMixer
from attensor.nn.mixer import Heads
from attensor.nn.window_grid import WindowGridAttention
from attensor.ops import channel_attention

__all__ = ["DualAttention"]


class DualAttention(WindowGridAttention):
    """DaViT's mixer: windows of cells in layers with an even index, groups of channels over the whole map in odd ones.

    Cost O(cells * C * (C + window_size^2)) and O(cells * C * (C + C / groups)): linear in the cells, and global in two
    layers. Windows have no biases, and are completed by zeros that are attended to; neither kind knows positions.
    Keys of the state_dict: `qkv.*`, `proj.*`, with the rows of `qkv` as published.

    Args:
        hidden_size: channels C.
        num_heads: heads of the windows, and groups of channels.
        window_size: side of a window in cells.
        version: of the channel attention. 1, DaViT: keys and values make the scores and queries are mixed, with the
            scale (C / groups)^-1/2. 2, Florence-2: queries, keys and values as usual, with the scale cells^-1/2.
        layer_index: place in the stack, from 0.
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels.
    Source: arXiv:2204.03645, section 3, and its official code; arXiv:2311.06242 (version 2).
    """

    shown = (*GridMixer.shown, "window_size", "version", "sees_channels")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        window_size: int = 7,
        version: Literal[1, 2] = 1,
        layer_index: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_range(self, 1, window_size=window_size)
        self.sees_channels = bool(layer_index % 2)
        super().__init__(
            hidden_size,
            num_heads,
            block_size=window_size,
            pattern="window",
            relative_bias=False,
            layer_index=layer_index,
            padding="hidden" if self.sees_channels else "visible",
            device=device,
            dtype=dtype,
        )
        self.window_size, self.version = window_size, version

    def attend(self, heads: Heads) -> Tensor:
        """Attention among cells or channels: [B, rows, columns, H, C / H]."""
        if not self.sees_channels:
            return super().attend(heads)
        q, k, v, *_ = heads
        if self.version == 1:
            return channel_attention(k, v, q)
        return channel_attention(q, k, v, scale=math.prod(q.shape[1:-2]) ** -0.5)

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """Values of the symbols of the card's formulas for an input of that size: M is what a cell's sums run over."""
        sizes = super().cost_sizes(space)
        return {**sizes, "M": self.head_dim} if self.sees_channels else sizes
