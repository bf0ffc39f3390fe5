r"""Lightning attention 1: the left product (Q K^T * M) V in tiles, O(T^2 (K + V)) operations and O(T) memory.

The baseline of lightning attention 2's claim, and its equal in results: M_ij = exp((i - j) log_decay) for i >= j. For a
block of rows from i0 on, the weights of the keys before it are products of exp((i - i0) log_decay) and
exp((i0 - j) log_decay), both at most 1; only the diagonal block needs a mask.

Source: arXiv:2307.14995, section 3.2 (LA-1); backward: arXiv:2405.17381, appendix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["left_product"]


def left_product(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, *, block: int = 128) -> Tensor:
    """Output [B, T, H, V], unscaled, in the dtype of v; differentiable for q, k and v.

    Args:
        q, k: [B, T, H, K].
        v: [B, T, H, V].
        log_decay: [H], natural log of the factor a token, at most 0; a constant. None is 0.
        block: rows of a tile.
    """
    decay = (q.new_zeros(q.shape[2]) if log_decay is None else log_decay).to(q.dtype)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    out: Tensor = _LeftProduct.apply(*heads_first, decay, block)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2)


class _LeftProduct(torch.autograd.Function):
    """(Q K^T * M) V for [B, H, T, ...]; forward and backward hold one row block of weights at a time."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, block: int) -> Tensor:
        """Row block by row block; only the inputs are kept."""
        ctx.save_for_backward(q, k, v, log_decay)
        ctx.block = block
        tiles = _tiles(q, k, log_decay, block)
        return torch.cat([v[:, :, :0], *(weights @ v[:, :, :last] for _, last, weights in tiles)], 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """dQ = P K, dK = P^T Q and dV = A^T dO, with A = Q K^T * M and P = dO V^T * M."""
        q, k, v, log_decay = ctx.saved_tensors
        grad_qs, grad_k, grad_v = [q[:, :, :0]], torch.zeros_like(k), torch.zeros_like(v)
        attended, changed = _tiles(q, k, log_decay, ctx.block), _tiles(grad, v, log_decay, ctx.block)
        for (first, last, a), (_, _, p) in zip(attended, changed, strict=True):
            grad_qs.append(p @ k[:, :, :last])
            grad_k[:, :, :last] += p.mT @ q[:, :, first:last]
            grad_v[:, :, :last] += a.mT @ grad[:, :, first:last]
        return torch.cat(grad_qs, 2), grad_k, grad_v, None, None


def _tiles(rows: Tensor, columns: Tensor, log_decay: Tensor, block: int) -> Iterator[tuple[int, int, Tensor]]:
    """(first, last, weights [B, H, last - first, last] = rows_i . columns_j M_ij, j < last) of each block of rows."""
    tokens = rows.shape[2]
    index = torch.arange(tokens, device=rows.device)
    for first in range(0, tokens, block):
        last = min(first + block, tokens)
        own = index[first:last]
        to_block = _decay(first - index[:first, None], log_decay).mT[..., None]  # [H, first, 1]
        in_block = _decay(own[:, None] - first, log_decay).mT[..., None]  # [H, last - first, 1]
        before = (rows[:, :, first:last] * in_block) @ (columns[:, :, :first] * to_block).mT
        mask = _decay((own[:, None] - own)[..., None], log_decay).movedim(-1, 0).tril()
        yield first, last, torch.cat([before, (rows[:, :, first:last] @ columns[:, :, first:last].mT) * mask], -1)


def _decay(distance: Tensor, log_decay: Tensor) -> Tensor:
    """exp(distance log_decay) [..., H]; 1 where the distance is not positive, also for a log decay of -inf."""
    return torch.where(distance > 0, distance * log_decay, 0.0).exp()
