r"""Attention among channels: every channel of a group is a token, whose vector is what it holds on all cells.

    A = softmax_d(scale sum_n q[n, c] k[n, d]),   out[n, c] = sum_d A[c, d] v[n, d]

Softmax attention with the axes of tokens and channels exchanged. Sizes: B batch, N cells, G groups, D channels each.
Source: arXiv:2204.03645, equation 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_qkv, checked, scale_of
from attensor.ops._operator import Implementation, Operator, reference_of
from attensor.ops._precision import full_precision, working_dtype
from attensor.ops.softmax_attention.reference import additive_mask, dense

__all__ = ["channel_attention", "channel_attention_reference"]

_NAME = "channel_attention"


@dataclass(frozen=True)
class Problem:
    """Arguments of `channel_attention`."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float


@checked
def channel_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, backend: str | None = None
) -> Tensor:
    """Attention among the channels of each group: every cell sees all cells, in O(N D^2) a group.

    Args:
        q: [B, *space, G, D], one to three space axes, any floating dtype.
        k, v: of the same sizes.
        scale: multiplies q k; `D ** -0.5` if None. The sum runs over the cells: with a fixed scale scores grow with
            their number, with `N ** -0.5` they do not.
        backend: `"reference"` or `"torch"`; the best available if None.
    Returns:
        [B, *space, G, D] in v's dtype. Scores and weights are in at least float32; D x D of them a group, whatever N.
    Raises:
        ShapeError: sizes disagree.
        TypeError: dtypes differ or are not floating. ValueError: devices differ.
    Source: arXiv:2204.03645, equation 3, with q, k, v called k, v, q in its official code. Derivatives of any order.
    """
    check_qkv(_NAME, q, k, v, space_dims=(1, 2, 3), same_space=True)
    if k.shape != q.shape or v.shape != q.shape:
        raise ShapeError(
            f"{_NAME}: q, k and v must have the same sizes, got q {list(q.shape)}, k {list(k.shape)} and v "
            f"{list(v.shape)}."
        )
    return _OPERATOR(Problem(q, k, v, scale_of(q, scale)), backend)


channel_attention_reference = reference_of(channel_attention, "Softmax attention with channels for tokens.")


def _define(x: Problem) -> Tensor:
    q, k, v = (t.flatten(1, -3).transpose(1, 3) for t in (x.q, x.k, x.v))  # [B, D, G, N]
    out, _ = dense(q, k, v, additive_mask(q, k, False, None, None), x.scale)
    return torch.unflatten(out.transpose(1, 3), 1, x.v.shape[1:-2])


def _torch(x: Problem) -> Tensor:
    dtype = working_dtype(x.q, x.k)
    q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (x.q, x.k, x.v))  # [B, G, N, D]
    with full_precision(q):
        # of two sums over all cells the scores' one is in full precision: it grows with their number
        scores = torch.matmul((q.to(dtype) * x.scale).mT, k.to(dtype))
        weights = scores.softmax(-1).to(v.dtype)
        out = torch.matmul(v, weights.mT)
    return torch.unflatten(out.transpose(1, 2), 1, x.v.shape[1:-2])


_OPERATOR: Operator[Problem, Tensor] = Operator(
    _NAME, {"reference": Implementation(_define), "torch": Implementation(_torch)}
)
