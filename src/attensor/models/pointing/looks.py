"""What crops of objects look like: two convolutions, and pooling to one size or to several coarse grids."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Crops"]


class Crops(nn.Module):
    """A vector for each crop; names of the official code. O(height width) a crop.

    Args:
        size: height and width in pixels.
        width: numbers of the vector.
        levels: maximum over 1, 2 x 2, 4 x 4, .. cells, so many grids; 0 for windows of 3 x 3.
    Raises:
        ValueError: crops too small for the convolutions.
    """

    def __init__(self, size: tuple[int, ...], width: int, levels: int = 0) -> None:
        super().__init__()
        self.levels = levels
        self.cnn1 = nn.Sequential(nn.Conv2d(3, 16, 5), nn.ReLU(), nn.MaxPool2d(5))
        last = [nn.MaxPool2d(3)] if levels == 0 else []
        self.cnn2 = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), *last)
        left = [(side - 4) // 5 - 2 for side in size]
        cells = math.prod(side // 3 for side in left) if levels == 0 else sum(4**level for level in range(levels))
        if min(left) < (3 if levels == 0 else 1):
            raise ValueError(
                f"OATConfig: look {size} is too small for the convolutions, of which {left} pixels would be left; "
                f"crops need at least {29 if levels == 0 else 19} pixels a side, and pooling_levels=2 takes less."
            )
        self.fc = nn.Linear(32 * cells, width)

    def forward(self, crops: Tensor) -> Tensor:
        """[B, N, height, width, 3] to [B, N, `width`]."""
        found = self.cnn2(self.cnn1(crops.flatten(0, 1).movedim(-1, 1)))
        pooled = found.flatten(1) if self.levels == 0 else self._pyramid(found)
        out: Tensor = self.fc(pooled)
        return out.view(*crops.shape[:2], -1)

    def _pyramid(self, x: Tensor) -> Tensor:
        """Maxima of ever finer grids [B, 32 (1 + 4 + 16 + ..)]; what a cell lacks at the border is 0, as published."""
        grids = []
        for level in range(self.levels):
            cells = 2**level
            size = [math.ceil(side / cells) for side in x.shape[-2:]]
            lacking = [cell * cells - side for cell, side in zip(size, x.shape[-2:], strict=True)]
            before = [lack // 2 for lack in lacking]
            padding = [before[1], lacking[1] - before[1], before[0], lacking[0] - before[0]]
            grids.append(F.max_pool2d(F.pad(x, padding), size).flatten(1))
        return torch.cat(grids, 1)
