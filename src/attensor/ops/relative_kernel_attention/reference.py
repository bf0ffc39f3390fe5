"""The definition of kernelised attention with relative positions: all weights in memory."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dense"]


def dense(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, segment: Tensor | None) -> Tensor:
    """out [B, H, Tq, V]: the mean of v under the weights phi_q_i . phi_k_j c_{j - i}; 0 where all of them are 0.

    Args:
        q, k: features [B, H, Tq, M] and [B, H, Tk, M].
        v: [B, H, Tk, V].
        weight: c, [H, Tq, Tk].
        segment: [T], pairs of different numbers have no weight; None: one sequence.
    """
    weights = torch.einsum("bhim,bhjm->bhij", q, k) * weight
    if segment is not None:
        weights = weights * (segment[:, None] == segment)
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bhjv->bhiv", weights, v) / total.masked_fill(total == 0, 1.0)
