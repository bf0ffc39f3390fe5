r"""Rotary positions on an image: one half of a head turns with the row, the other half with the column.

    a_i = base^(-i / (D/4 - 1))                           i = 0 .. D/4 - 1, from 1 down to 1 / base, both included
    angles(row, column) = (row a_0, .., row a_{D/4-1}, column a_0, .., column a_{D/4-1})
    (x_{2i}, x_{2i+1}) -> (x_{2i} cos - x_{2i+1} sin, x_{2i+1} cos + x_{2i} sin)

so that q . k depends on the offsets between their rows and between their columns only. Neighbouring channels are pairs,
unlike in `rotary_embedding`. Sizes: B images, T = height * width cells row by row, H heads, D head width.
Source: arXiv:2411.07635 and its code (arXiv:2104.09864, section 3.2.2, on two axes).
Tables are computed from the grid at each call: any resolution works, and there is no buffer to lose.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["grid_rotary_embedding"]


def grid_rotary_embedding(x: Tensor, space: tuple[int, int], *, base: float = 10_000.0) -> Tensor:
    """Turn every head of x by the row and the column of its cell; O(B T H D).

    Args:
        x: [B, T, H, D], the cells of the grid row by row; D a multiple of 4.
        space: height and width of the grid, height * width = T.
        base: the slowest pair turns once in about `2 pi base` rows or columns.
    Returns:
        [B, T, H, D] in x's dtype; angles are computed in at least float32.
    """
    height, width = space
    dtype = torch.promote_types(x.dtype, torch.float32)
    frequencies = base ** -torch.linspace(0, 1, x.shape[-1] // 4, device=x.device, dtype=dtype)
    rows = torch.arange(height, device=x.device, dtype=dtype)[:, None, None] * frequencies
    columns = torch.arange(width, device=x.device, dtype=dtype)[:, None] * frequencies
    turned_by = [rows.expand(height, width, -1), columns.expand(height, width, -1)]
    angles = torch.cat(turned_by, dim=-1).flatten(0, 1)[:, None]  # [T, 1, D/2]
    cos, sin = angles.cos(), angles.sin()
    even, odd = torch.unflatten(x.to(dtype), -1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)
