r"""Rows of queries by themselves, with all weights of a row in memory: the definition, and what sums have lost.

    z = sum_j w_j v_j / sum_j w_j     w_j = phi_q . phi_k_j exp(b_j - m)     m = max of b_j over keys with a product

The row's own maximum m cancels, so that no bias is too large; what a row does not see (b = -inf) takes no part,
whatever it holds. Backward, with g = dL/dz, p = w / sum w and u_j = g . v_j - g . z:

    dv_j = p_j g     db_j = p_j u_j     d(phi_q . phi_k_j) = exp(b_j - m) u_j / sum w

Sizes: R rows, N keys, M features, V values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attensor.ops._confine import visible_product
from attensor.ops.relative_kernel_attention.operands import Geometry, Inputs

__all__ = ["add_row_gradients", "mean", "put_rows", "row_biases"]

_AT_ONCE = 2**20  # pairs of some rows and the keys they may see
_FEW = 256


def mean(q: Tensor, k: Tensor, v: Tensor, biases: Tensor) -> Tensor:
    """z [.., R, V] of q [.., R, M], k [.., N, M], v [.., N, V] and biases [.., R, N]; 0 where nothing is seen."""
    x = _Pairs.of(q, k, biases)
    return torch.where(x.total != 0, visible_product(x.weights, v, x.visible) / x.divisor(), 0.0)


def row_biases(x: Inputs, geometry: Geometry, heads: slice, rows: Tensor, keys: int) -> Tensor:
    """[heads, R, N]: b of each pair of some rows [R] with the first keys, -inf in different sequences."""
    biases = x.biases[heads]
    if len(geometry.queries) == 1 and not torch.is_grad_enabled():  # vmap has no rule for its derivative
        biases = biases.unfold(1, keys, 1)[:, geometry.queries[0] - 1 - rows]
    else:
        biases = biases.flatten(1)[:, _offsets(geometry, rows, keys)]
    if x.segment is None:
        return biases
    return biases.masked_fill(x.segment[rows][:, None] != x.segment[:keys], float("-inf"))


def put_rows(out: Tensor, x: Inputs, geometry: Geometry, chosen: Tensor) -> None:
    """Write z of the chosen rows (bool [B, H, Tq]) into out [B, H, Tq, V]."""
    for b, head, rows, keys in _blocks(chosen, geometry):
        q, k, v = x.q[b, head][:, rows], x.k[b, head, :keys], x.v[b, head, :keys]
        out[b, head, rows] = mean(q, k, v, row_biases(x, geometry, head, rows, keys))


def add_row_gradients(grads: list[Tensor], x: Inputs, grad: Tensor, geometry: Geometry, chosen: Tensor) -> None:
    """Add those of the chosen rows to the gradients of q, k, v and biases, in place, from that of z [B, H, Tq, V]."""
    grad_q, grad_k, grad_v, grad_biases = grads[0], grads[1], grads[2], grads[3].flatten(1)
    for b, head, rows, keys in _blocks(chosen, geometry):
        q, k, v, g = x.q[b, head][:, rows], x.k[b, head, :keys], x.v[b, head, :keys], grad[b, head][:, rows]
        pairs = _Pairs.of(q, k, row_biases(x, geometry, head, rows, keys))
        shares, visible = pairs.shares(), pairs.visible
        out = visible_product(shares, v, visible)
        worth = torch.matmul(g, v.mT) - (g * out).sum(-1, keepdim=True)
        of_products = torch.where(visible & (pairs.total != 0), pairs.factor * worth / pairs.divisor(), 0.0)
        grad_q[b, head, rows] += visible_product(of_products, k, visible)
        grad_k[b, head, :keys] += visible_product(of_products.mT, q, visible.mT)
        grad_v[b, head, :keys] += torch.matmul(shares.mT, g)
        of_biases = torch.where(visible, shares * worth, 0.0).flatten(1)
        grad_biases[head].index_add_(1, _offsets(geometry, rows, keys).flatten(), of_biases)


class _Pairs(NamedTuple):
    """What pairs of rows and keys weigh."""

    visible: Tensor  # bool [.., R, N]
    factor: Tensor  # exp(b - m)
    weights: Tensor
    total: Tensor  # [.., R, 1]

    @classmethod
    def of(cls, q: Tensor, k: Tensor, biases: Tensor) -> _Pairs:
        products = torch.matmul(q, k.mT)
        visible = (biases != float("-inf")).expand(products.shape)
        largest = biases.masked_fill(products.detach() == 0, float("-inf")).detach().amax(-1, keepdim=True)
        largest = largest.masked_fill(largest == float("-inf"), 0.0)
        # larger ones are those of keys whose product is 0
        limit = math.log(torch.finfo(products.dtype).max) - 8
        factor = (biases - largest).clamp(max=limit).exp()
        weights = torch.where(visible, products * factor, 0.0)
        return cls(visible, factor, weights, weights.sum(-1, keepdim=True))

    def divisor(self) -> Tensor:
        """The total, 1 where it is 0."""
        return self.total.masked_fill(self.total == 0, 1.0)

    def shares(self) -> Tensor:
        """The weights divided by their total."""
        return self.weights / self.divisor()


def _offsets(geometry: Geometry, rows: Tensor, keys: int) -> Tensor:
    """[R, N]: the number of each pair's offset among all."""
    *_, width = geometry.queries
    key = torch.arange(keys, device=rows.device)
    if len(geometry.queries) == 1:
        return key - rows[:, None] + width - 1
    across = key % geometry.keys[1] - (rows % width)[:, None] + width - 1
    down = key // geometry.keys[1] - (rows // width)[:, None] + geometry.queries[0] - 1
    return down * geometry.offsets[1] + across


def _blocks(chosen: Tensor, geometry: Geometry) -> Iterator[tuple[int, slice, Tensor, int]]:
    """Entry of the batch, head, some of the rows that are chosen there, and how many keys they may see."""
    every = math.prod(geometry.keys)
    for b, h in chosen.any(-1).nonzero().tolist():
        rows = chosen[b, h].nonzero().flatten()
        while len(rows):
            some, keys = rows, every
            if geometry.is_causal:  # the first rows of a sequence, where sums are small, see few keys
                later = every - geometry.queries[0]
                keys = min(every, max(_FEW, 2 * (int(rows[0]) + 1 + later)))
                some = rows[rows < keys - later]
            some = some[: max(1, _AT_ONCE // keys)]
            rows = rows[len(some) :]
            yield b, slice(h, h + 1), some, keys
