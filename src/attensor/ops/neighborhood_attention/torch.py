"""Tiled neighbourhood attention in PyTorch: one batched dense attention over many tiles, a bounded number at a time.

Forward keeps the log-sum-exp of each row; backward recomputes the weights from it (arXiv:2403.04690, section 3; the
equations are flash attention's). Dilation groups become a part of the batch first, so the tiles know no dilation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attensor.ops._checks import scale_of
from attensor.ops._free_sizes import is_sure
from attensor.ops._kernel import Tensors, is_for_onnx
from attensor.ops._precision import full_precision
from attensor.ops.neighborhood_attention.function import Options, neighborhood
from attensor.ops.neighborhood_attention.neighborhood import Axis
from attensor.ops.neighborhood_attention.reference import Problem, define
from attensor.ops.softmax_attention.reference import Attended

__all__ = ["neighborhood_attention_torch"]


def neighborhood_attention_torch(problem: Problem) -> Attended:
    """See `neighborhood_attention`."""
    if is_for_onnx() and any(axis.dilation > 1 for axis in problem.axes):
        return define(problem)  # groups of one length would be another program than those of two
    if any(is_sure(axis.length == 0) for axis in problem.axes):
        return define(problem)  # without cells there is no tile
    with full_precision(problem.q):
        out, lse = _grouped(problem.axes, scale_of(problem.q, problem.scale), problem.tensors)
    return (out, lse) if problem.return_lse else out


def _grouped(axes: tuple[Axis, ...], scale: float, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Attend inside every dilation group of the first dilated axis; groups are a part of the batch."""
    dilated = next((i for i, axis in enumerate(axes) if axis.dilation > 1), None)
    if dilated is None:
        out, lse = neighborhood(tensors, Options.of(axes, scale))
        return out, lse
    q, k, v, bias, *additional, first_key = tensors
    n = axes[dilated].length
    d = min(axes[dilated].dilation, max(n, 1))  # beyond it every token is a group of its own
    longest, long_groups = -(-n // d), n % d or d
    padded = [F.pad(x, [0, 0] * (x.ndim - 2 - dilated) + [0, longest * d - n]) for x in (q, k, v)]
    folded = [torch.unflatten(x, 1 + dilated, (longest, d)) for x in padded]
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    # groups g < n mod d hold one token more than the others
    for start, count, length in ((0, long_groups, longest), (long_groups, d - long_groups, longest - 1)):
        if count == 0:
            continue
        of_groups = [x.narrow(2 + dilated, start, count).narrow(1 + dilated, 0, length) for x in folded]
        group = [x.movedim(2 + dilated, 1).flatten(0, 1) for x in of_groups]
        inner = (*axes[:dilated], axes[dilated].group(length), *axes[dilated + 1 :])
        extra = [None if x is None else x.repeat_interleave(count, 0) for x in additional]
        out, lse = _grouped(inner, scale, (*group, bias, *extra, first_key))
        for parts, x in zip(found, (out, lse)):
            x = torch.unflatten(x, 0, (q.shape[0], count)).movedim(1, 2 + dilated)
            parts.append(F.pad(x, [0, 0] * (x.ndim - 2 - dilated) + [0, longest - length]))
    out, lse = (
        torch.cat(parts, 2 + dilated).flatten(1 + dilated, 2 + dilated).narrow(1 + dilated, 0, n) for parts in found
    )
    return out, lse
