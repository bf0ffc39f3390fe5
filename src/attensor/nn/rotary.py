r"""Rotary position embedding: a query and a key turn by angles proportional to their positions, in a row or a grid.

    angle(p, i) = p * base^(-2 i / D)                      i = 0 .. D/2 - 1
    (x_i, x_{i + D/2}) -> (x_i cos - x_{i + D/2} sin, x_i sin + x_{i + D/2} cos)

so that q_m . k_n depends on m - n only. On a grid one half of a head turns with the row, the other with the column:

    a_i = base^(-i / (D/4 - 1))                            i = 0 .. D/4 - 1, from 1 down to 1 / base, both included
    angles(row, column) = (row a_0, .., row a_{D/4-1}, column a_0, .., column a_{D/4-1})
    (x_{2i}, x_{2i+1}) -> (x_{2i} cos - x_{2i+1} sin, x_{2i+1} cos + x_{2i} sin)

Sizes: B batch, T tokens (cells row by row), H heads, D head width.
Source: arXiv:2104.09864, equation 34, with the two halves of a head paired (the layout of Llama's checkpoints); on a
grid arXiv:2411.07635 and its code, with neighbouring channels paired.
Tables are computed at each call: any size works, and there is no buffer to lose on the meta device.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["grid_rotary_embedding", "rotary_embedding", "token_positions"]


def token_positions(
    tokens: int,
    *,
    offset: int = 0,
    first: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    device: torch.device,
) -> Tensor:
    """Positions of consecutive tokens; each packed sequence starts again at 0.

    Args:
        tokens: how many.
        offset: place of the first one (what a cache already holds).
        first: [B], place of each row's first real token, whose position is 0; 0 for all rows if None.
        cu_seqlens: [N + 1], where packed sequences start and end.
        device: of the result.
    Returns:
        [tokens], int64; with `first` [B, tokens], and 0 at the padding before it.
    """
    positions = torch.arange(tokens, device=device)
    if cu_seqlens is None:
        positions = positions + offset
        return positions if first is None else (positions - first.to(device)[:, None]).clamp(min=0)
    starts = cu_seqlens.to(device=device, dtype=torch.int64)
    return positions - starts[torch.searchsorted(starts, positions, right=True) - 1]


def rotary_embedding(x: Tensor, positions: Tensor, *, base: float = 10_000.0) -> Tensor:
    """Turn every head of x by its token's position; O(B T H D).

    Args:
        x: [B, T, H, D], D even.
        positions: [T] or [B, T], integers.
        base: the slowest pair turns once in about `2 pi base` tokens.
    Returns:
        [B, T, H, D] in x's dtype; angles are computed in at least float32.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angles = (positions.to(dtype)[..., None] * frequencies)[..., None, :]  # [T, 1, D/2] or [B, T, 1, D/2]
    cos, sin = angles.cos(), angles.sin()
    first, second = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


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
