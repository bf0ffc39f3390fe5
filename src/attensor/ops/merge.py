r"""Partial softmaxes merged: attention to several sets of keys from the attention to each.

    lse = log sum_n exp(lse_n),   out = sum_n exp(lse_n - lse) out_n

Sizes: N parts, B batch, H heads, V value width.
Source: arXiv:2112.05682, section 2; arXiv:2310.01889, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_devices, checked
from attensor.ops._operator import Implementation, Operator, reference_of
from attensor.ops._precision import FLOATS, working_dtype

__all__ = ["merge_attention", "merge_attention_reference"]


@dataclass(frozen=True)
class Problem:
    """Arguments of `merge_attention`."""

    outs: tuple[Tensor, ...]
    lses: tuple[Tensor, ...]


@checked
def merge_attention(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The attention to all keys together, from its parts.

    Args:
        outs: one or more [B, *space, H, V], as `softmax_attention` and `neighborhood_attention` return them.
        lses: of each the log-sum-exp [B, *space, H]; -inf where a query saw none of the part's keys.
    Returns:
        out [B, *space, H, V] in the dtype of the parts and lse [B, *space, H] in at least float32; 0 and -inf where no
        part saw a key. Derivatives of any order.
    Raises:
        ShapeError: no parts, other numbers of outs and lses, or sizes that differ.
        TypeError: dtypes of outs or lses differ. ValueError: devices differ.
    Cost: O(N B T H V).
    Source: arXiv:2310.01889, section 3.
    """
    if not outs or len(outs) != len(lses):
        raise ShapeError(
            f"merge_attention: outs and lses must be as many, at least one, got {len(outs)} and {len(lses)}."
        )
    for label, parts, shape in (("outs", outs, outs[0].shape), ("lses", lses, outs[0].shape[:-1])):
        for part in parts:
            if part.shape != shape:
                raise ShapeError(
                    f"merge_attention: {label} must all be {list(shape)}, as the first of outs {list(outs[0].shape)} "
                    f"says, got {list(part.shape)}."
                )
            check_devices("merge_attention", outs[0], "outs[0]", **{label: part})
            if part.dtype != parts[0].dtype or part.dtype not in FLOATS:
                raise TypeError(
                    f"merge_attention: {label} must share one floating dtype, got {part.dtype} beside "
                    f"{parts[0].dtype}; use .to()."
                )
    return _OPERATOR(Problem(tuple(outs), tuple(lses)))


merge_attention_reference = reference_of(merge_attention, "The definition, one sum after the other.")


def _define(problem: Problem) -> tuple[Tensor, Tensor]:
    first = problem.outs[0]
    # a factor common to all parts cancels; the largest exponential is then 1
    lses = [lse.to(working_dtype(lse)) for lse in problem.lses]
    top = torch.stack([lse.detach() for lse in lses]).amax(0)
    top = top.masked_fill(top == float("-inf"), 0.0)
    numerator, total = torch.zeros_like(first, dtype=working_dtype(first)), torch.zeros_like(top)
    for out, lse in zip(problem.outs, lses):
        weight = (lse - top).exp()
        numerator, total = numerator + weight[..., None] * out, total + weight
    empty = total == 0
    lse = total.masked_fill(empty, 1.0).log() + top
    out = numerator / total.masked_fill(empty, 1.0)[..., None]
    return out.to(first.dtype), lse.masked_fill(empty, float("-inf"))


# summing one after the other is also the fastest form: a stack of all parts is as much memory again
_OPERATOR: Operator[Problem, tuple[Tensor, Tensor]] = Operator(
    "merge_attention", {"reference": Implementation(_define)}, device_of=lambda problem: problem.outs[0].device
)
