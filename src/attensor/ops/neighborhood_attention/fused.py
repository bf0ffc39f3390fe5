"""Neighbourhoods by the kernels below `F.scaled_dot_product_attention` on a CPU: no scores in memory.

A small grid is attended to as a whole under a mask, which costs less than the calls for its tiles. The kernels know one
mask for all tiles of a head, one width of keys and values, and no gradient of a bias; whatever else is asked for stays
with `function`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attensor.ops.neighborhood_attention.neighborhood import Axis
from attensor.ops.neighborhood_attention.scores import (
    Operands,
    Piece,
    add_to_boxes,
    boxes_of,
    cut,
    is_whole,
    layout,
    of_each_pair,
    put_rows,
    rows_of,
)
from attensor.ops.neighborhood_attention.tiles import whole
from attensor.ops.softmax_attention.fold import with_unit_stride

__all__ = ["attend", "attend_backward", "can_fuse", "loses_digits", "whole_backward"]

_LARGE = 500.0  # a log-sum-exp from which on float32 loses 4 digits of a weight


def can_fuse(x: Operands, scale: float) -> bool:
    """Whether the kernels compute this; they mask before they scale."""
    if x.bias is not None and x.bias.requires_grad and torch.is_grad_enabled():
        return False  # in an exported program autograd looks into this
    is_plain = x.q.device.type == "cpu" and x.first_key is None and x.q.dtype == x.dtype
    return is_plain and scale > 0 and x.q.shape[-1] == x.v.shape[-1] and x.q.numel() > 0


def loses_digits(lse: Tensor) -> bool:
    """Whether scores are so large that exp(scores - lse) is too rough for derivatives."""
    largest = float(lse.abs().amax())
    if largest == math.inf:  # a row without keys has nothing to lose
        largest = float(lse.masked_fill(lse == -math.inf, 0.0).abs().amax())
    return largest > _LARGE


def attend(x: Operands, axes: tuple[Axis, ...], scale: float) -> tuple[Tensor, Tensor]:
    """out [B, *space, H, V] and lse [B, *space, H], where everything is finite: the kernel makes 0 of a NaN in q."""
    return _attend_whole(x, axes, scale) if is_whole(x, axes, is_fused=True) else _attend_tiles(x, axes, scale)


def attend_backward(
    x: Operands,
    axes: tuple[Axis, ...],
    scale: float,
    results: tuple[Tensor, Tensor, Tensor],
    grads: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
) -> None:
    """Write the gradient of q and add those of k, v and the additional ones.

    Args:
        x, axes, scale: as in `attend`.
        results: out, lse [.., 1] and the gradient of out, each [B, Hkv, R, *space, width].
        grads: of q as q, of k and v with a margin, of the additional keys and values or None.
    """
    of_q, of_k, of_v, of_extra_k, of_extra_v = grads
    for piece in cut(x, axes, base=1.0):
        queries, keys, values = _operands(x, piece)
        out, lse, of_out = (with_unit_stride(rows_of(t, piece)) for t in results)
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            of_out, queries, keys, values, out, lse[..., 0], 0.0, False, attn_mask=_mask(piece, queries), scale=scale
        )
        put_rows(of_q, piece, found[0])
        add_to_boxes(of_k, of_extra_k, found[1], piece)
        add_to_boxes(of_v, of_extra_v, found[2], piece)


def _attend_whole(x: Operands, axes: tuple[Axis, ...], scale: float) -> tuple[Tensor, Tensor]:
    batch, kv_heads, groups = x.q.shape[:3]
    queries = with_unit_stride(x.q.flatten(1, 2).flatten(2, -2))
    keys, values = (_joined(t, extra, groups) for t, extra in ((x.k, x.extra_k), (x.v, x.extra_v)))
    added = _added(x, axes)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries, keys, values, 0.0, False, attn_mask=added, scale=scale
    )
    if _may_close(x.bias):
        lse = lse.masked_fill((added == -math.inf).all(-1), -math.inf)
    space = x.q.shape[3:-1]
    # a copy only where the kernel lays heads out first
    return (
        out.transpose(1, 2).contiguous().view(batch, *space, kv_heads * groups, -1),
        lse.transpose(1, 2).contiguous().view(batch, *space, kv_heads * groups),
    )


def whole_backward(
    x: Operands, axes: tuple[Axis, ...], scale: float, out: Tensor, lse: Tensor, of_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of q, k, v [B, *space, heads, D] and of the additional keys and values [B, E, Hkv, D].

    Args:
        x, axes, scale: as in `attend`, of a grid that is one tile.
        out, lse, of_out: the results, and the gradient of out, with heads last.
    """
    space, kv_heads, groups = x.q.shape[3:-1], *x.q.shape[1:3]
    queries = with_unit_stride(x.q.flatten(1, 2).flatten(2, -2))
    keys, values = (_joined(t, extra, groups) for t, extra in ((x.k, x.extra_k), (x.v, x.extra_v)))
    of_rows, rows = (with_unit_stride(t.flatten(1, -3).transpose(1, 2)) for t in (of_out, out))
    of_q, *of_keys = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        of_rows, queries, keys, values, rows, lse.flatten(1, -2).transpose(1, 2), 0.0, False,
        attn_mask=_added(x, axes), scale=scale,
    )  # fmt: skip
    if groups > 1:
        of_keys = [torch.unflatten(t, 1, (kv_heads, groups)).sum(2) for t in of_keys]
    cells = math.prod(space)
    near = [torch.unflatten(t[:, :, :cells].transpose(1, 2), 1, space) for t in (of_q, *of_keys)]
    far = [None if x.extra_k is None else t[:, :, cells:].transpose(1, 2) for t in of_keys]
    return near[0], near[1], near[2], far[0], far[1]


def _may_close(bias: Tensor | None) -> bool:
    """Whether a bias of -inf may leave a row without keys, whose log-sum-exp the kernel does not know."""
    return bias is not None and bool((bias == -math.inf).any())


def _joined(x: Tensor, extra: Tensor | None, groups: int) -> Tensor:
    """[B, Hkv, *space, D] and [B, Hkv, E, D] -> [B, H, n + E, D]."""
    rows = x.flatten(2, -2)
    rows = rows if extra is None else torch.cat([rows, extra], 2)
    return with_unit_stride(rows if groups == 1 else rows.repeat_interleave(groups, 1))


def _added(x: Operands, axes: tuple[Axis, ...]) -> Tensor:
    """The mask of a whole grid, [1, H or 1, n, n + E]."""
    closed, offsets = layout(axes, whole(axes), 0 if x.extra_k is None else x.extra_k.shape[2], x.dtype, x.q.device)
    if x.bias is None:
        return closed[None, None]
    added = of_each_pair(x.bias, offsets).to(x.dtype).flatten(0, 1)[None]
    extra = closed.shape[1] - offsets.shape[1]
    return closed + (torch.nn.functional.pad(added, (0, extra)) if extra else added)


def _attend_tiles(x: Operands, axes: tuple[Axis, ...], scale: float) -> tuple[Tensor, Tensor]:
    batch, kv_heads, groups, *space, width = x.q.shape
    out = x.v.new_empty(batch, *space, kv_heads * groups, width)
    lse = x.q.new_empty(batch, *space, kv_heads * groups)
    out_rows, lse_rows = (torch.unflatten(t.movedim(-2, 1), 1, (kv_heads, -1)) for t in (out, lse[..., None]))
    may_close = _may_close(x.bias)
    for piece in cut(x, axes, base=1.0):
        queries, keys, values = _operands(x, piece)
        mask = _mask(piece, queries)
        found, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, values, 0.0, False, attn_mask=mask, scale=scale
        )
        if may_close:
            sums = sums.masked_fill((mask == -math.inf).all(-1), -math.inf)
        put_rows(out_rows, piece, found)
        put_rows(lse_rows, piece, sums[..., None])
    return out, lse


def _operands(x: Operands, piece: Piece) -> tuple[Tensor, ...]:
    """Queries, keys and values [Hkv, B * tiles, rows, D]."""
    found = rows_of(x.q, piece), boxes_of(x.k, x.extra_k, piece), boxes_of(x.v, x.extra_v, piece)
    return tuple(map(with_unit_stride, found))


def _mask(piece: Piece, queries: Tensor) -> Tensor:
    """[Hkv or 1, 1, R * queries, keys + E]."""
    added = piece.added[:, 0]  # [Hkv or 1, R or 1, queries, keys + E]
    groups = queries.shape[2] // added.shape[2]
    return added.expand(-1, groups, -1, -1).reshape(added.shape[0], 1, -1, added.shape[3])
