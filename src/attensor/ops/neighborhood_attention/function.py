"""The differentiable core, all tiles forward and backward, in memory linear in the tokens.

Backward recomputes the weights of a tile, which holds all keys of its queries (arXiv:2403.04690, section 3):
    P = softmax(S),  dP = dO V^T,  delta = rowsum(P * dP) - dlse,  dS = P * (dP - delta),
    dQ = scale dS K,   dK = scale dS^T Q,   dV = P^T dO,   d bias = dS summed over the pairs that share an entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from attensor.ops._confine import is_finite, may_hide, visible_product
from attensor.ops._kept import kept
from attensor.ops._kernel import Tensors, differentiable, register
from attensor.ops._precision import full_precision, working_dtype
from attensor.ops.neighborhood_attention.fused import attend, attend_backward, can_fuse, loses_digits, whole_backward
from attensor.ops.neighborhood_attention.line import attend_line, line_backward, spacing_of
from attensor.ops.neighborhood_attention.neighborhood import Axis, keys_seen
from attensor.ops.neighborhood_attention.reference import dense_neighborhood
from attensor.ops.neighborhood_attention.scores import (
    LOG2_E,
    Operands,
    Piece,
    add_to_boxes,
    cut,
    is_whole,
    put_rows,
    rows_of,
    scores_of,
    split_heads,
    tiling,
)
from attensor.ops.neighborhood_attention.tiles import Run

__all__ = ["Options", "axes_with", "for_each_bias", "neighborhood"]

_BORDERS = ((False, False), (True, False), (False, True), (True, True))  # is_causal, is_cut
_TINY = torch.finfo(torch.float32).tiny  # no sum of weights is smaller, unless no key is seen


@dataclass(frozen=True)
class Options:
    """What is no tensor: of each axis window, dilation, stride and how its borders are, in a row; and the scale."""

    windows: tuple[int, ...]
    scale: float

    @classmethod
    def of(cls, axes: Sequence[Axis], scale: float) -> Options:
        """Of axes, without their lengths."""
        return cls(_windows(axes), scale)


@kept
def _windows(axes: Sequence[Axis]) -> tuple[int, ...]:
    return tuple(n for axis in axes for n in (*axis[1:4], _BORDERS.index(axis[-2:])))


@kept
def axes_with(q: Sequence[int], windows: Sequence[int]) -> tuple[Axis, ...]:
    """The axes of queries of shape [B, *space, H, K], of what `Options.windows` holds."""
    rows = zip(q[1:-2], windows[::4], windows[1::4], windows[2::4], windows[3::4])
    return tuple(Axis(n, window, step, stride, *_BORDERS[border]) for n, window, step, stride, border in rows)


def _run(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *more, windows, scale = rest
    axes = axes_with(q.shape, windows)
    fused = _run_fused((q, k, v, *more), axes, scale)
    if fused is not None and is_finite(fused[0]) and not (may_hide(fused[1]) and not is_finite(q, k)):
        return fused
    x = Operands.of(q, k, v, *more)
    out = v.new_empty(*q.shape[:-1], v.shape[-1])
    lse = q.new_empty(q.shape[:-1], dtype=x.dtype)
    out_rows, lse_rows = (split_heads(t, k.shape[-2]) for t in (out, lse[..., None]))
    for piece in cut(x, axes):
        scores, (*_, values) = scores_of(x, piece, scale)
        weights, total, top = _weights(scores)
        found = torch.matmul(weights, values)
        # a row of nothing but -inf is closed, unless its numbers are not finite
        if not is_finite(found) or (may_hide(total) and not is_finite(q, k)):
            scores, (*_, values) = scores_of(x, piece, scale, is_confined=True)
            is_visible = scores != -math.inf
            weights, total, top = _weights(scores)
            found = visible_product(weights, values, is_visible)
        put_rows(out_rows, piece, found.div_(total.clamp_min(_TINY)))
        put_rows(lse_rows, piece, total.log2_().add_(top).div_(LOG2_E))
    return out, lse


def _run_fused(tensors: Tensors, axes: tuple[Axis, ...], scale: float) -> tuple[Tensor, Tensor] | None:
    """As `_run`, where everything is finite; None where the kernels do not compute this."""
    if scale > 0 and (spacing := spacing_of(tensors, axes)) is not None:
        q, k, v, *_ = tensors
        return attend_line(q, k, v, spacing, scale)
    x = Operands.of(*tensors)
    return attend(x, axes, scale) if can_fuse(x, scale) else None


def _weights(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """2^(scores - top), written over the scores, their sums and top: the largest of a row, finite where it is empty."""
    top = scores.amax(-1, keepdim=True).clamp_min_(torch.finfo(scores.dtype).min)
    weights = scores.sub_(top).exp2_()
    return weights, weights.sum(-1, keepdim=True), top


def _run_backward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, bias, additional keys and values; empty where there are none."""
    *more, out, lse, grad_out, grad_lse, windows, scale = rest
    axes = axes_with(q.shape, windows)
    is_plain = scale > 0 and grad_lse is None
    spacing = spacing_of((q, k, v, *more), axes) if is_plain else None
    if spacing is not None and not loses_digits(lse):
        grads = [*line_backward((q, k, v), spacing, scale, out, lse, grad_out), None, None, None]
    else:
        grads = _grid_backward(Operands.of(q, k, v, *more), axes, scale, (out, lse, grad_out, grad_lse))
    like = (q, k, v, more[0], more[1], more[2])
    return tuple(q.new_empty(0) if g is None else g.to(t.dtype).contiguous() for g, t in zip(grads, like))


def _grid_backward(
    x: Operands, axes: tuple[Axis, ...], scale: float, results: tuple[Tensor, Tensor, Tensor, Tensor | None]
) -> list[Tensor | None]:
    """As `_run_backward`, of `results`: out, lse and their gradients."""
    is_fused = can_fuse(x, scale) and x.bias is None and results[3] is None and not loses_digits(results[1])
    if is_fused and is_whole(x, axes, is_fused=True):
        of_q, of_k, of_v, *of_extra = whole_backward(x, axes, scale, *results[:3])
        return [of_q, of_k, of_v, None, *of_extra]
    return _tiles_backward(x, axes, scale, results, is_fused=is_fused)


def _tiles_backward(
    x: Operands,
    axes: tuple[Axis, ...],
    scale: float,
    results: tuple[Tensor, Tensor, Tensor, Tensor | None],
    *,
    is_fused: bool,
) -> list[Tensor | None]:
    """As `_grid_backward`, in the working dtype."""
    kv_heads = x.k.shape[1]
    out, lse, of_out = (split_heads(t, kv_heads) for t in (results[0], results[1][..., None], results[2]))
    of_lse = None if results[3] is None else split_heads(results[3][..., None], kv_heads)
    grad_q = split_heads(results[2].new_empty(*results[2].shape[:-1], x.q.shape[-1], dtype=x.q.dtype), kv_heads)
    grad_k, grad_v = (_with_margin(t, tiling(x, axes), x.dtype) for t in (x.k, x.v))
    grad_bias, grad_extra_k, grad_extra_v = (_zeros(t, x.dtype) for t in (x.bias, x.extra_k, x.extra_v))
    if is_fused:
        attend_backward(x, axes, scale, (out, lse, of_out), (grad_q, grad_k, grad_v, grad_extra_k, grad_extra_v))
    for piece in () if is_fused else cut(x, axes):
        scores, (queries, keys, values) = scores_of(x, piece, scale)
        grad = rows_of(of_out, piece).to(x.dtype)
        # not by the log-sum-exp, of which large scores leave no digits
        weights, total, _ = _weights(scores)
        weights.div_(total.clamp_min_(_TINY))
        add_to_boxes(grad_v, grad_extra_v, torch.matmul(weights.mT, grad), piece)
        # the sum of P dP is taken over the same numbers, so that a weight of 1 alone gives 0 and no rounding
        grad_scores = torch.ops.aten._softmax_backward_data(torch.matmul(grad, values.mT), weights, -1, x.dtype)
        if of_lse is not None:
            grad_scores.addcmul_(weights, rows_of(of_lse, piece).to(x.dtype))
        put_rows(grad_q, piece, torch.matmul(grad_scores, keys).mul_(scale))
        add_to_boxes(grad_k, grad_extra_k, torch.matmul(grad_scores.mT, queries), piece)
        if grad_bias is not None:
            _add_bias(grad_bias, grad_scores, piece)
    inside = [slice(n) for n in x.q.shape[3:-1]]
    return [
        grad_q.flatten(1, 2).movedim(1, -2),
        *(t[:, :, *inside].movedim(1, -2) for t in (grad_k, grad_v)),
        None if grad_bias is None else grad_bias.flatten(0, 1)[None],
        *(None if t is None else t.transpose(1, 2) for t in (grad_extra_k, grad_extra_v)),
    ]


def _pairs(q: Sequence[int], *rest: Any) -> int:
    """Pairs of a query and a key that it sees, over batch and heads."""
    _, extra, *_, windows, _ = rest
    pairs = prod(keys_seen(axis) for axis in axes_with(q, windows))
    return q[0] * q[-2] * (pairs + (prod(q[1:-2]) * extra[1] if extra else 0))


_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? extra_k, Tensor? extra_v, Tensor? first_key"
_SAVED = "Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse"
_kernel = register(
    f"neighborhood_attention({_TENSORS}, int[] windows, float scale) -> (Tensor, Tensor)",
    _run,
    lambda q, k, v, *_: (v.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=working_dtype(q))),
    flops=lambda q, k, v, *rest: 2 * _pairs(q, *rest) * (q[-1] + v[-1]),
    devices=("CPU", "CUDA"),
)
_kernel_backward = register(
    f"neighborhood_attention_backward({_TENSORS}, {_SAVED}, int[] windows, float scale) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    lambda *x: tuple(x[0].new_empty(0) if t is None else t.new_empty(t.shape) for t in x[:6]),
    # scores again, and the gradients of weights, q, k and v
    flops=lambda q, k, v, *rest: 2 * _pairs(q, *rest) * (3 * q[-1] + 2 * v[-1]),
    devices=("CPU", "CUDA"),
)


def _forward(tensors: Tensors, options: Options, keep: bool) -> tuple[Tensor, ...]:
    with full_precision(tensors[0]):
        return for_each_bias(_kernel, tensors, options)


def _backward(
    tensors: Tensors, kept: tuple[Tensor, ...], grads: Tensors, options: Options, needs: tuple[bool, ...]
) -> Tensors:
    out, lse = kept
    grad_out = torch.zeros_like(out) if grads[0] is None else grads[0]
    with full_precision(out):
        found = for_each_bias(_kernel_backward, (*tensors, out, lse, grad_out, grads[1]), options)
    return *(g if needed else None for g, needed in zip(found, needs)), None


def for_each_bias(run: Callable[..., Any], tensors: Tensors, options: Options) -> tuple[Tensor, ...]:
    """`run` on the whole batch, or entry by entry where `torch.vmap` gave each its own bias."""
    bias, batch = tensors[3], tensors[0].shape[0]
    if bias is None or bias.shape[0] == 1:
        return tuple(run(*tensors, options.windows, options.scale))
    entries = [
        [t if t is None or place == 6 else t[i : i + 1] for place, t in enumerate(tensors)] for i in range(batch)
    ]
    results = [run(*entry, options.windows, options.scale) for entry in entries]
    return tuple(torch.cat(parts) for parts in zip(*results))


def _definition(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    return dense_neighborhood(tensors, axes_with(tensors[0].shape, options.windows), options.scale)


# (q, k, v, bias [1, H, ..], additional keys and values, first_key) to (out, lse) of undilated neighbourhood attention
neighborhood = differentiable(
    _forward, _backward, _definition, batch_dims=(0, 0, 0, 0, 0, 0, None), out_dims=(0, 0), keep_outputs=True
)


def _zeros(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Contiguous whatever x is, so that its flattened views are written to."""
    return None if x is None else x.new_zeros(x.shape, dtype=dtype)


def _with_margin(x: Tensor, along: Sequence[Sequence[Run]], dtype: torch.dtype) -> Tensor:
    """Zeros of x's shape [B, Hkv, *space, D] with room for one tile more along every axis, as `add_boxes` wants."""
    margins = [max((run.tile for run in runs if run.count > 1), default=0) for runs in along]
    space = [n + margin for n, margin in zip(x.shape[2:-1], margins)]
    return x.new_zeros(*x.shape[:2], *space, x.shape[-1], dtype=dtype)


def _add_bias(total: Tensor, grad_scores: Tensor, piece: Piece) -> None:
    """Add gradients of scores [Hkv, B * tiles, R * queries, keys + E] to those of the table [Hkv, R, *(2 w - 1)]."""
    if piece.offsets is None:
        return
    of_pairs = torch.unflatten(grad_scores[..., : piece.box].sum(1), 1, (total.shape[1], -1))  # [Hkv, R, queries, keys]
    index = piece.offsets.flatten().expand(*total.shape[:2], -1)
    total.flatten(2).scatter_add_(2, index, of_pairs.flatten(2))
