"""What queries and keys of a chunk give under a decay of each key channel: halves of blocks, from one token to C."""

# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Answers", "Gradients", "halving"]

Gradients = tuple[Tensor, Tensor, Tensor | None]


class Answers(NamedTuple):
    """What the queries and keys of chunks give, and the gradients of q, k and gates by those of these four."""

    scores: Tensor  # A [n, N, C, C]
    reading: Tensor  # [n, N, C, K]
    writing: Tensor  # [n, N, C, K]
    total: Tensor | None  # [n or 1, N, 1, K or 1]; None: 1
    back: Callable[[Tensor, Tensor, Tensor, Tensor | None], Gradients]


def halving(q: Tensor, k: Tensor, decay: Tensor, keep: bool) -> Answers:
    """The answers for a decay of each key channel, from blocks of one token to blocks of C.

    Of a block of 2h tokens, a row i of the right half and a column j of the left have exp(G_i - G_j) = [decay from the
    middle to i] [decay from j to the middle], two factors <= 1: one product of decayed queries and decayed keys.
    Cost: C (C - 1) K operations a chunk and log2(C) passes over q and k, half of each.
    """
    n, heads, size, channels = q.shape
    reading, writing, total = (x.flatten(0, 1) for x in (q * decay, k.clone(), decay))  # [n N, C, K]
    scores = q.new_zeros(n * heads, size, size)
    scores.diagonal(0, 1, 2).copy_((q * k).sum(-1).flatten(0, 1))
    levels, half = [], 1
    while half < size:
        rows, columns, (left, right) = _halves(reading, half)[1], _halves(writing, half)[0], _halves(total, 1)
        _lower(scores, half).copy_(_products(rows, columns))
        if keep:
            levels.append((rows.clone(), columns.clone(), left, right))
        rows.mul_(left)
        columns.mul_(right)
        total, half = (left * right).squeeze(2), 2 * half

    def back(of_scores: Tensor, of_reading: Tensor, of_writing: Tensor, of_total: Tensor | None) -> Gradients:
        diagonal = of_scores.diagonal(0, 2, 3).unsqueeze(-1)
        of_scores, of_reading, of_writing = (x.flatten(0, 1).clone() for x in (of_scores, of_reading, of_writing))
        of_total = None if of_total is None else of_total.flatten(0, 1)
        for level, (rows, columns, left, right) in reversed(list(enumerate(levels))):
            of_rows, of_columns = _halves(of_reading, 2**level)[1], _halves(of_writing, 2**level)[0]
            if of_total is not None:
                of_left = (of_rows * rows).sum(2, keepdim=True) + of_total.unsqueeze(2) * right
                of_right = (of_columns * columns).sum(2, keepdim=True) + of_total.unsqueeze(2) * left
                of_total = torch.cat([of_left, of_right], 2).flatten(1, 2)
            of_products = _lower(of_scores, 2**level)
            of_rows.mul_(left).add_(_mix(of_products, columns))
            of_columns.mul_(right).add_(_mix(of_products.mT, rows))
        of_reading = of_reading.view(q.shape)
        of_q, of_k = of_reading * decay + diagonal * k, of_writing.view(q.shape) + diagonal * q
        return of_q, of_k, None if of_total is None else (of_reading * q + of_total.view(q.shape)) * decay

    ends = total.view(n, heads, 1, channels)
    return Answers(scores.view(n, heads, size, size), reading.view(q.shape), writing.view(q.shape), ends, back)


def _halves(x: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Left and right halves [n N, blocks, h, K] of the blocks of x [n N, C, K]."""
    left, right = x.unflatten(1, (-1, 2, half)).unbind(2)
    return left, right


def _lower(scores: Tensor, half: int) -> Tensor:
    """Rows of right halves and columns of left ones, of each block on the diagonal: [n N, blocks, h, h]."""
    blocks = scores.unflatten(1, (-1, 2, half)).unflatten(4, (-1, 2, half))[:, :, 1, :, :, 0]
    return blocks.diagonal(0, 1, 3).movedim(-1, 1)


def _products(rows: Tensor, columns: Tensor) -> Tensor:
    """rows columns^T; a batch of products of such small matrices takes several times longer than their terms."""
    if rows.shape[2] > 2:
        return rows @ columns.mT
    return (rows.unsqueeze(3) * columns.unsqueeze(2)).sum(-1)


def _mix(weights: Tensor, x: Tensor) -> Tensor:
    """weights x, for blocks [h, h] and [h, K]; small ones term by term."""
    if x.shape[2] > 2:
        return weights @ x
    return (weights.unsqueeze(-1) * x.unsqueeze(2)).sum(3)
