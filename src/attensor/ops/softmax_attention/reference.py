"""The definition of softmax attention: all scores in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from attensor.ops import _packing
from attensor.ops._confine import visible_product
from attensor.ops._precision import full_precision, working_dtype

__all__ = ["Attended", "Problem", "additive_mask", "define", "define_by_rows", "dense", "row_blocks"]

# `Tensor`, or `tuple[Tensor, Tensor]` with `return_lse=True`; a union would have to be taken apart at every call.
Attended: TypeAlias = Any


@dataclass(frozen=True)
class Problem:
    """Arguments of `softmax_attention`, by the same names."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    is_causal: bool
    attn_mask: Tensor | None
    dropout_p: float
    cu_seqlens: tuple[Tensor, Tensor] | None
    return_lse: bool
    generator: torch.Generator | None


def define(x: Problem) -> Attended:
    """The result of `softmax_attention`, all scores in memory."""
    mask = additive_mask(x.q, x.k, x.is_causal, x.attn_mask, x.cu_seqlens)
    out, lse = dense(x.q, x.k, x.v, mask, x.scale, x.dropout_p, x.generator)
    return (out, lse) if x.return_lse else out


def define_by_rows(x: Problem) -> Attended:
    """The same, of some queries at a time."""
    mask = additive_mask(x.q, x.k, x.is_causal, x.attn_mask, x.cu_seqlens)
    found = [
        dense(x.q[:, rows], x.k, x.v, mask if mask.shape[2] == 1 else mask[:, :, rows], x.scale)
        for rows in row_blocks(x.q, x.k)
    ]
    out, lse = (torch.cat(parts, 1) for parts in zip(*found))
    return (out, lse) if x.return_lse else out


def row_blocks(q: Tensor, k: Tensor) -> list[slice]:
    """Queries of [B, Tq, H, K] in parts whose scores for [B, Tk, ..] are some 16 million."""
    size = max(1, 2**24 // max(1, q.shape[0] * q.shape[2] * k.shape[1]))
    return [slice(start, start + size) for start in range(0, q.shape[1], size)]


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scale: float,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """out [B, Tq, H, V] and lse [B, Tq, H] under a mask that is added to the scores [B, H, Tq, Tk]."""
    compute = working_dtype(q)
    keys, values = (t.to(compute).repeat_interleave(q.shape[2] // k.shape[2], dim=2) for t in (k, v))
    with full_precision(q):
        scores = torch.einsum("bihk,bjhk->bhij", q.to(compute) * scale, keys) + mask.to(compute)
    # A row that may attend to nothing is given finite scores, and its weights are removed afterwards: a softmax of
    # nothing but -inf is NaN, which PyTorch's anomaly detection would stop at, although it is masked later on.
    closed = mask == float("-inf")
    empty = closed.all(-1, keepdim=True)
    scores = scores.masked_fill(closed, float("-inf")).masked_fill(empty, 0.0)
    weights = scores.softmax(-1).masked_fill(empty, 0.0)
    if dropout_p > 0.0:
        kept = torch.rand(weights.shape, generator=generator, device=q.device, dtype=compute) >= dropout_p
        weights = weights * kept / (1.0 - dropout_p)
    with full_precision(q):
        out = visible_product(weights, values.transpose(1, 2), ~closed).transpose(1, 2).to(v.dtype)
    return out, scores.logsumexp(-1).masked_fill(empty[..., 0], float("-inf")).transpose(1, 2)


def additive_mask(
    q: Tensor, k: Tensor, is_causal: bool, attn_mask: Tensor | None, cu_seqlens: tuple[Tensor, Tensor] | None
) -> Tensor:
    """[B or 1, H or 1, Tq or 1, Tk or 1], what is added to the scores in the working precision: -inf for unseen keys.

    Causal is aligned bottom-right, so that the last query sees every key; packed sequences see themselves only.
    """
    mask = torch.zeros(1, 1, 1, 1, dtype=working_dtype(q), device=q.device)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        mask = mask.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        mask = attn_mask.to(mask.dtype)
    if cu_seqlens is not None:
        mask = mask.masked_fill(~_packing.visible(cu_seqlens, (q.shape[1], k.shape[1]), is_causal), float("-inf"))
    elif is_causal:
        late = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).triu(k.shape[1] - q.shape[1] + 1)
        mask = mask.masked_fill(late, float("-inf"))
    return mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
