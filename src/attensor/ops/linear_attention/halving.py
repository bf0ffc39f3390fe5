r"""Decayed scores inside a chunk by halving: exact, safe, and almost all of it in matrix products.

With a decay for every key channel the scores A_ij = sum_c q_ic k_jc exp(G_ic - G_jc) are no matrix product, and
splitting the exponential into exp(G_i) exp(-G_j) overflows. But split a block of 2h tokens in the middle: for a row i
of its right half and a column j of its left half, exp(G_i - G_j) = [decay from the middle to i] [decay from j to the
middle], two factors <= 1. So the lower left quarter of the block is one product of decayed queries and decayed keys,
and its two diagonal quarters are the same problem at half the size. From h = 1 upward, a block's factors are its
halves' factors times the other half's total decay: one exponential a token and channel is all that is ever taken, and
running sums of gates are never subtracted, so that a large gate costs its neighbours no digits.

Sizes: n chunks, C tokens in a chunk (a power of two), K key channels.
Cost: n C (C - 1) K floating-point operations in matrix products and log2(C) passes over q and k.
Source: secondary chunking of arXiv:2312.06635, section 4.3, carried down to single tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attensor.ops.linear_attention.scratch import Scratch

__all__ = ["Level", "halving_backward", "halving_forward", "suffix_sum"]


class Level(NamedTuple):
    """What one level leaves for the backward pass; n blocks of 2h tokens in each of the n chunks."""

    rows: Tensor  # [n, blocks, h, K] decayed queries of the right halves
    columns: Tensor  # [n, blocks, h, K] decayed keys of the left halves
    left: Tensor  # [n, blocks, 1, K] total decay of the left halves
    right: Tensor  # [n, blocks, 1, K] total decay of the right halves


def halving_forward(
    q: Tensor, k: Tensor, decay: Tensor, scratch: Scratch, *, keep_levels: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Level]]:
    """Decayed scores of every chunk, and the decayed queries and keys that reach across its borders.

    Args:
        q, k: [n, C, K].
        decay: [n, C, K], exp(log_decay), in [0, 1].
        scratch: where the results are written.
        keep_levels: also return what `halving_backward` needs.
    Returns:
        scores [n, C, C]; reading [n, C, K] = q exp(G); writing [n, C, K] = k exp(G_last - G); total [n, 1, K] =
        exp(G_last); levels.
    """
    n, size, channels = q.shape
    reading, writing = (scratch.take(name, n, size, channels) for name in ("reading", "writing"))
    scores = scratch.take("scores", n, size, size).zero_()
    scores.diagonal(dim1=1, dim2=2).copy_(torch.mul(q, k, out=reading).sum(-1))
    torch.mul(q, decay, out=reading)
    writing.copy_(k)
    total = decay
    levels = []
    half = 1
    while half < size:
        blocks = size // (2 * half)
        halves = (n, blocks, 2, half, channels)
        _, rows = reading.view(halves).unbind(2)
        columns, _ = writing.view(halves).unbind(2)
        left, right = total.view(n, blocks, 2, 1, channels).unbind(2)
        if channels > 1:
            products = torch.bmm(rows.flatten(0, 1), columns.flatten(0, 1).mT).view(n, blocks, half, half)
        else:
            products = rows * columns.mT
        _quarters(scores, half).copy_(products)
        if keep_levels:
            kept_rows, kept_columns = (scratch.take(f"{name} {half}", *rows.shape) for name in ("rows", "columns"))
            levels.append(Level(kept_rows.copy_(rows), kept_columns.copy_(columns), left, right))
        rows.mul_(left)
        columns.mul_(right)
        total = left * right
        half *= 2
    return scores, reading, writing, total.view(n, 1, channels), levels


def halving_backward(
    grad_scores: Tensor,
    grad_reading: Tensor,
    grad_writing: Tensor,
    q: Tensor,
    k: Tensor,
    decay: Tensor,
    levels: list[Level],
) -> tuple[Tensor, Tensor]:
    """Gradients of q and k [n, C, K]; `grad_reading` and `grad_writing` are overwritten.

    Args:
        grad_scores: [n, C, C]; what stands above the diagonal is ignored.
        grad_reading, grad_writing: [n, C, K].
        q, k, decay, levels: arguments and result of `halving_forward`.
    """
    n, _, channels = q.shape
    for rows, columns, left, right in reversed(levels):
        blocks, half = rows.shape[1], rows.shape[2]
        halves = (n, blocks, 2, half, channels)
        _, grad_rows = grad_reading.view(halves).unbind(2)
        grad_columns, _ = grad_writing.view(halves).unbind(2)
        grad_products = _quarters(grad_scores, half)
        _add_product(grad_rows.mul_(left), grad_products, columns)
        _add_product(grad_columns.mul_(right), grad_products.mT, rows)
    own = grad_scores.diagonal(dim1=1, dim2=2)[..., None]
    return grad_reading.mul_(decay).addcmul_(own, k), grad_writing.addcmul_(own, q)


def suffix_sum(x: Tensor) -> Tensor:
    """sum_{i >= t} x_i over dim 1 of x [n, C, D] (C a power of two), in place; pairwise, to keep rounding small."""
    n, size, channels = x.shape
    half = 1
    while half < size:
        left, right = x.view(n, size // (2 * half), 2, half, channels).unbind(2)
        left.add_(right[:, :, :1])
        half *= 2
    return x


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a b for out, b [n, blocks, h, K] and a [n, blocks, h, h]."""
    half = b.shape[2]
    if half > 2:
        out.add_(torch.bmm(a.reshape(-1, half, half), b.flatten(0, 1)).view(b.shape))
        return
    # a batch of products of such small matrices takes several times longer
    for j in range(half):
        out.addcmul_(a[..., j : j + 1], b[:, :, j : j + 1])


def _quarters(scores: Tensor, half: int) -> Tensor:
    """View of scores [n, C, C]: [n, blocks, h, h], the rows of right halves against the columns of left ones."""
    n, size, _ = scores.shape
    blocks = size // (2 * half)
    square = scores.view(n, blocks, 2 * half, blocks, 2 * half).diagonal(dim1=1, dim2=3)
    return square[:, half:, :half].permute(0, 3, 1, 2)
