"""What is not finite stays where it is seen: a weight of 0 times NaN is NaN, and a matrix product asks for it."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import math

import torch
from torch import Tensor

from attensor.ops._kernel import is_direct

__all__ = ["is_finite", "may_hide", "visible_product"]

_AT_ONCE = 2**24  # numbers held for the pairs of some tokens


def is_finite(*tensors: Tensor) -> bool:
    """Whether all numbers are finite, which is looked at on a CPU alone (a GPU would have to be waited for).

    Where a compiler or a transform watches, or on other devices, they are taken to be.
    """
    if not is_direct(tensors):
        return True
    # map, because a generator takes half as long again where a call takes microseconds
    return all(map(_is_finite, tensors))


def _is_finite(x: Tensor) -> bool:
    if not x.is_cpu:
        return True
    x = x.detach() if x.requires_grad else x
    # a sum in another dtype takes twice as long where a call takes microseconds; one that overflows is looked into
    total = x.sum() if x.itemsize > 2 else x.sum(dtype=torch.float32)
    return math.isfinite(total.item()) or bool(x.isfinite().all())


def may_hide(lse: Tensor) -> bool:
    """Whether a row may have had scores that are NaN or infinite, of which the fused kernel makes 0.

    Its lse is 0 then, or in half precision infinite. Looked at on a CPU alone, as `is_finite`.
    """
    if not (lse.is_cpu and is_direct((lse,)) and lse.numel()):
        return False
    return not bool(lse.all()) or not lse.amax().item() < math.inf


def visible_product(weights: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """weights @ values, to which pairs that are not visible add nothing, whatever the value.

    Args:
        weights: [.., M, N], 0 where not visible.
        values: [.., N, D].
        visible: bool, broadcasts to weights.
    """
    if is_finite(values):
        return torch.matmul(weights, values)
    is_bad = ~values.isfinite()
    out = torch.matmul(weights, values.masked_fill(is_bad, 0.0))
    tokens = is_bad.any(-1).reshape(-1, values.shape[-2]).any(0).nonzero().flatten()
    for some in tokens.split(max(1, _AT_ONCE // max(1, out.numel()))):
        seen, bad = visible.expand(weights.shape)[..., some, None], values[..., None, some, :]
        pairs = torch.where(seen & is_bad[..., None, some, :], weights[..., some, None] * bad, 0.0)
        out = out + pairs.sum(-2)
    return out
