"""The differentiable core: all tiles forward and backward, in memory linear in the tokens.

Forward keeps the log-sum-exp of every row. Backward recomputes the weights from it (arXiv:2403.04690, section 3):
    P = exp(S - lse),  dP = dO V^T,  delta = rowsum(dO * O) - dlse,  dS = P * (dP - delta),
    dQ = scale dS K,   dK = scale dS^T Q,   dV = P^T dO,   d bias = dS summed over the pairs that share an entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attensor.ops.neighborhood_attention.neighborhood import Axis
from attensor.ops.neighborhood_attention.scores import (
    LOG2_E,
    Operands,
    Piece,
    cut,
    put_rows,
    rows_of,
    scores_of,
    split_heads,
)
from attensor.ops.neighborhood_attention.tiles import add_boxes, runs

__all__ = ["NeighborhoodFunction"]

# q, k, v, bias, additional keys and values, first_key; in backward also grad_out, lse, delta: where their heads are
_HEADS = (-2, -2, -2, 0, -2, -2, None, -2, -1, -1)


class NeighborhoodFunction(torch.autograd.Function):
    """out [B, *space, H, V] and lse [B, *space, H] of undilated neighbourhood attention."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        extra_k: Tensor | None,
        extra_v: Tensor | None,
        first_key: Tensor | None,
        axes: tuple[Axis, ...],
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Attend tile by tile."""
        x = Operands.of(q, k, v, bias, extra_k, extra_v, first_key)
        out = v.new_empty(*q.shape[:-1], v.shape[-1])
        lse = q.new_empty(q.shape[:-1], dtype=x.dtype)
        out_rows, lse_rows = (split_heads(t, k.shape[-2]) for t in (out, lse[..., None]))
        for piece in cut(x, axes):
            scores, _, values = scores_of(x, piece, scale)
            top = scores.amax(-1, keepdim=True)
            weights = scores.sub_(top).exp2_()
            total = weights.sum(-1, keepdim=True)
            put_rows(out_rows, piece, torch.bmm(weights, values).div_(total))
            put_rows(lse_rows, piece, total.log2_().add_(top).div_(LOG2_E))
        return out, lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep the inputs, the result and the log-sum-exp: nothing that grows with the window."""
        *tensors, ctx.axes, ctx.scale = inputs
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the six differentiable inputs."""
        grad_out, grad_lse = grads
        *tensors, out, lse = ctx.saved_tensors
        delta = (grad_out.to(lse.dtype) * out.to(lse.dtype)).sum(-1) - grad_lse
        found = iter(_Backward.apply(*tensors, grad_out, lse, delta, ctx.axes, ctx.scale))  # type: ignore[no-untyped-call]
        return *[None if t is None else next(found) for t in tensors[:6]], None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """A mapped dimension becomes a part of the heads, which are independent of each other."""
        *tensors, axes, scale = args
        folded = _fold_into_heads(info.batch_size, in_dims, tensors)
        return _unfold_from_heads(info.batch_size, NeighborhoodFunction.apply(*folded, axes, scale), (-2, -1))  # type: ignore[no-untyped-call]


class _Backward(torch.autograd.Function):
    """Gradients of q, k, v, and of those of bias, additional keys and values that are there.

    A Function of its own, so that vmap over a gradient takes the rule above and not one operation at a time.
    """

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        extra_k: Tensor | None,
        extra_v: Tensor | None,
        first_key: Tensor | None,
        grad_out: Tensor,
        lse: Tensor,
        delta: Tensor,
        axes: tuple[Axis, ...],
        scale: float,
    ) -> tuple[Tensor, ...]:
        x = Operands.of(q, k, v, bias, extra_k, extra_v, first_key)
        of_rows = [split_heads(t, k.shape[-2]) for t in (grad_out, lse[..., None], delta[..., None])]
        grad_q = torch.empty_like(q)
        grad_q_rows = split_heads(grad_q, k.shape[-2])
        grad_k, grad_v = (_with_margin(t, axes, x.dtype) for t in (x.k, x.v))
        grad_bias, grad_extra_k, grad_extra_v = (
            None if t is None else torch.zeros_like(t, dtype=x.dtype, memory_format=torch.contiguous_format)
            for t in x[3:6]
        )
        for piece in cut(x, axes):
            scores, keys, values = scores_of(x, piece, scale)
            grad, row_lse, row_delta = (rows_of(t, piece, x.dtype) for t in of_rows)
            weights = scores.sub_(row_lse * LOG2_E).exp2_()
            _add_keys(grad_v, grad_extra_v, torch.bmm(weights.mT, grad), piece)
            grad_scores = torch.bmm(grad, values.mT).sub_(row_delta).mul_(weights)
            put_rows(grad_q_rows, piece, torch.bmm(grad_scores, keys).mul_(scale))
            _add_keys(grad_k, grad_extra_k, torch.bmm(grad_scores.mT, rows_of(x.q, piece, x.dtype)).mul_(scale), piece)
            if grad_bias is not None:
                _add_bias(grad_bias, grad_scores, piece)
        inside = [slice(n) for n in q.shape[1:-2]]
        grads = [grad_q, *[t[:, :, *inside].movedim(1, -2).to(q.dtype) for t in (grad_k, grad_v)]]
        if bias is not None and grad_bias is not None:
            grads.append(grad_bias.flatten(0, 1).to(bias.dtype))
        grads += [t.transpose(1, 2).to(q.dtype) for t in (grad_extra_k, grad_extra_v) if t is not None]
        return tuple(grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            "neighborhood_attention: the torch back-end has first derivatives only; for second ones use "
            'backend="reference".'
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        *tensors, axes, scale = args
        heads = [head for head, t in zip(_HEADS[:6], tensors) if t is not None and head is not None]
        folded = _fold_into_heads(info.batch_size, in_dims, tensors)
        return _unfold_from_heads(info.batch_size, _Backward.apply(*folded, axes, scale), heads)  # type: ignore[no-untyped-call]


def _with_margin(x: Tensor, axes: Sequence[Axis], dtype: torch.dtype) -> Tensor:
    """Zeros of x's shape [B, Hkv, *space, D] with room for one tile more along every axis, as `add_boxes` wants."""
    margins = [max(run.tile for run in runs(axis, len(axes))) for axis in axes]
    space = [n + margin for n, margin in zip(x.shape[2:-1], margins)]
    return x.new_zeros(*x.shape[:2], *space, x.shape[-1], dtype=dtype)


def _add_keys(total: Tensor, extra: Tensor | None, part: Tensor, piece: Piece) -> None:
    """Add gradients [M, keys + E, D] to those of the keys in the boxes, and of the additional keys."""
    part = torch.unflatten(part, 0, (*total[piece.batch].shape[:2], -1))
    add_boxes(total[piece.batch], part[:, :, :, : piece.box], piece.runs)
    if extra is not None:
        extra[piece.batch] += part[:, :, :, piece.box :].sum(2)


def _add_bias(total: Tensor, grad_scores: Tensor, piece: Piece) -> None:
    """Add gradients of scores [M, R * queries, keys + E] to those of the table [Hkv, R, *(2 w - 1)]."""
    if piece.offsets is None:
        return
    kv_heads, groups = total.shape[:2]
    of_pairs = torch.unflatten(grad_scores[..., : piece.box], 1, (groups, -1))
    of_pairs = torch.unflatten(of_pairs, 0, (-1, kv_heads, piece.tiles)).sum((0, 2))  # [Hkv, R, queries, keys]
    index = piece.offsets.flatten().expand(kv_heads, groups, -1)
    total.flatten(2).scatter_add_(2, index, of_pairs.flatten(2))


def _fold_into_heads(size: int, in_dims: tuple[Any, ...], tensors: list[Any]) -> list[Any]:
    """Every tensor with the mapped dimension as the major part of its heads; those without it are repeated."""
    folded = []
    for t, dim, head in zip(tensors, in_dims, _HEADS):
        if t is None or (head is None and dim is None):
            folded.append(t)
            continue
        if head is None:
            raise ValueError("neighborhood_attention: vmap cannot map over cu_seqlens; loop over the packings.")
        t = t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        at = head % (t.ndim - 1)
        folded.append(t.movedim(0, at).flatten(at, at + 1))
    return folded


def _unfold_from_heads(size: int, outputs: tuple[Tensor, ...], heads: Sequence[int]) -> tuple[Any, Any]:
    """Undo `_fold_into_heads` for the outputs, and say where the mapped dimension is."""
    places = [head % t.ndim for t, head in zip(outputs, heads)]
    return tuple([torch.unflatten(t, at, (size, -1)) for t, at in zip(outputs, places)]), tuple(places)
