r"""Keys so far away that they all have the same coefficient, which then need no tiles: O(n) by running sums.

    y_I += c_left q_I sum_{J <= I + left} k_J^T v_J  +  c_right q_I sum_{J >= I + right} k_J^T v_J

for tiles I of queries and J of keys. Backward, the gradients of the sums are summed the other way round.
Sizes: N = B H, I and J tiles of queries and keys, E cells in a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Far", "add_far", "add_far_gradients"]


class Far(NamedTuple):
    """Which tiles of keys are far from a tile I of queries."""

    left: int | None  # those up to I + left
    right: int | None  # those from I + right

    def sides(self, q_tiles: int, k_tiles: int) -> Iterator[tuple[bool, slice, slice]]:
        """(whether to the right, tiles of queries, the tiles up to or from which keys are summed for each)."""
        if self.left is not None:
            first = max(0, -self.left)
            yield False, slice(first, q_tiles), slice(first + self.left, q_tiles + self.left)
        if self.right is not None:
            last = min(q_tiles, k_tiles - self.right)
            yield True, slice(0, last), slice(self.right, last + self.right)


def add_far(out: Tensor, tiles: tuple[Tensor, Tensor, Tensor], ends: Tensor, far: Far) -> None:
    """Add what queries take from far keys to out [I, N, E, V], in place.

    tiles: q [I, N, E, M], k [J, N, E, M], v [J, N, E, V]; ends [H, 2]: coefficients of the left and right side.
    """
    q, k, v = tiles
    products = _matmul(k.mT, v)  # [J, N, M, V]
    for is_right, queries, keys in far.sides(q.shape[0], k.shape[0]):
        sums = _by_head(_running(products, reverse=is_right)[keys], ends) * ends[:, int(is_right), None, None]
        target = out[queries]
        target += _matmul(q[queries], sums.flatten(1, 2))


def add_far_gradients(
    grads: tuple[Tensor, Tensor, Tensor],
    tiles: tuple[Tensor, Tensor, Tensor],
    grad_out: Tensor,
    ends: Tensor,
    far: Far,
) -> Tensor:
    """Add the gradients of `add_far` to those of q, k, v, in place, and return that of ends; grad_out [I, N, E, V]."""
    q, k, v = tiles
    products = _matmul(k.mT, v)
    grad_products, grad_ends = torch.zeros_like(products), torch.zeros_like(ends)
    for is_right, queries, keys in far.sides(q.shape[0], k.shape[0]):
        weight = ends[:, int(is_right), None, None]
        sums = _by_head(_running(products, reverse=is_right)[keys], ends)
        grad_q = grads[0][queries]
        grad_q += _matmul(grad_out[queries], (sums * weight).flatten(1, 2).mT)
        grad_sums = _by_head(_matmul(q[queries].mT, grad_out[queries]), ends)
        grad_ends[:, int(is_right)] = (grad_sums * sums).sum((0, 1, 3, 4))
        placed = torch.zeros_like(products)
        placed[keys] = (grad_sums * weight).flatten(1, 2)
        grad_products += _running(placed, reverse=not is_right)
    grads[1].add_(_matmul(v, grad_products.mT))
    grads[2].add_(_matmul(k, grad_products))
    return grad_ends


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).view(*a.shape[:3], b.shape[3])


def _running(x: Tensor, *, reverse: bool) -> Tensor:
    """Sums over the tiles up to each one, or (reverse) from each one."""
    return x.flip(0).cumsum(0).flip(0) if reverse else x.cumsum(0)


def _by_head(x: Tensor, ends: Tensor) -> Tensor:
    """[n, N, M, V] as [n, B, H, M, V]."""
    heads = ends.shape[0]
    return x.view(x.shape[0], x.shape[1] // heads, heads, *x.shape[2:])
