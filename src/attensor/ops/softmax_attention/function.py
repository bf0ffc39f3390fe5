"""Fused softmax attention on a CPU, forward and backward, with its log-sum-exp: memory linear in the tokens.

The kernels are those below `F.scaled_dot_product_attention`. They want one width D for q, k and v. Backward takes
zeros on the right; forward copies no keys or values for it where it can be helped: values wider than keys go in parts
of K columns, and narrower ones are read together with the columns that follow them in memory.

Backward knows no gradient of lse: with P = exp(S - lse) it computes dS = P (dO V^T - rowsum(dO O)), and the wanted
+ P dlse is one more column, in which V is 0, O is -dlse and dO is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from attensor.ops._kernel import Tensors, differentiable, is_direct, register
from attensor.ops._precision import full_precision, working_dtype
from attensor.ops.softmax_attention.fold import Fold, with_unit_stride
from attensor.ops.softmax_attention.reference import additive_mask, dense, row_blocks

__all__ = ["Options", "fused"]

_LARGE = 500.0  # a log-sum-exp from which on float32 loses 4 digits of a weight
_WIDEST = 4  # parts of values; beyond, keys are small beside them and are padded


@dataclass(frozen=True)
class Options:
    """What is no tensor.

    Attributes:
        scale: multiplies q k; positive, because the kernel masks before it scales.
        is_causal: as many queries as keys, and no mask.
    """

    scale: float
    is_causal: bool


def _run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool) -> tuple[Tensor, Tensor]:
    fold = Fold(q, k, is_causal=is_causal, is_masked=mask is not None)
    if v.shape[-1] > _WIDEST * q.shape[-1]:
        q, k = (_pad(t, v.shape[-1]) for t in (q, k))
    queries, keys = with_unit_stride(fold.of_queries(q)), with_unit_stride(fold.of_keys(k))
    added = None if mask is None else with_unit_stride(fold.of_mask(mask))
    found, lse = [], torch.empty(0)
    for values, new in _parts(v, q.shape[-1]):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, fold.of_keys(values), 0.0, is_causal, attn_mask=added, scale=scale
        )
        found.append(fold.rows(out[..., new]))
    lse = fold.rows(lse[..., None])[..., 0]
    if mask is not None:
        empty = (mask == -math.inf).all(-1).transpose(1, 2)  # [B or 1, Tq, H or 1]
        lse = lse.masked_fill(empty, -math.inf)
    return found[0] if len(found) == 1 else torch.cat(found, -1), lse


def _parts(v: Tensor, width: int) -> Iterator[tuple[Tensor, slice]]:
    """Values [B, Tk, Hkv, width], and which of their columns are new."""
    size = v.shape[-1]
    if size <= width:
        yield _widened(v, width), slice(size)
        return
    v = with_unit_stride(v)
    for start in range(0, size, width):
        first = min(start, size - width)
        yield v[..., first : first + width], slice(start - first, width)


def _widened(v: Tensor, width: int) -> Tensor:
    """v [.., V] as [.., width]: a view where memory goes on so far, else with zeros; what follows v is never used."""
    if v.shape[-1] == width:
        return with_unit_stride(v)
    last = v.storage_offset() + sum((n - 1) * stride for n, stride in zip(v.shape[:-1], v.stride())) + width
    if v.stride(-1) == 1 and is_direct((v,)) and last * v.element_size() <= v.untyped_storage().nbytes():
        return v.as_strided((*v.shape[:-1], width), v.stride())
    return with_unit_stride(_pad(v, width))


def _run_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    scale: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    fold = Fold(q, k, is_causal=is_causal, is_masked=mask is not None)
    size, width = v.shape[-1], max(q.shape[-1], v.shape[-1] + (grad_lse is not None))
    if grad_lse is not None:
        out = torch.cat([out, -grad_lse[..., None].to(out.dtype)], -1)
        grad_out = torch.cat([grad_out, torch.ones_like(grad_out[..., :1])], -1)
    # rows that see nothing have weights exp(-inf - 0)
    lse = fold.of_queries(lse.masked_fill(lse == -math.inf, 0.0)[..., None])[..., 0]
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        with_unit_stride(fold.of_queries(_pad(grad_out, width))),
        with_unit_stride(fold.of_queries(_pad(q, width))),
        with_unit_stride(fold.of_keys(_pad(k, width))),
        with_unit_stride(fold.of_keys(_pad(v, width))),
        with_unit_stride(fold.of_queries(_pad(out, width))),
        lse,
        0.0,
        is_causal,
        attn_mask=None if mask is None else with_unit_stride(fold.of_mask(mask)),
        scale=scale,
    )
    grad_q, grad_k, grad_v = (x.narrow(-1, 0, n) for x, n in zip(grads, (q.shape[-1], q.shape[-1], size)))
    return fold.rows(grad_q), fold.sum_keys(grad_k), fold.sum_keys(grad_v)


def _pad(x: Tensor, width: int) -> Tensor:
    return F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x


# floating-point operations are those of all pairs, whatever the mask, as torch counts its own attention
_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? mask"
_kernel = register(
    f"softmax_attention({_TENSORS}, float scale, bool is_causal) -> (Tensor, Tensor)",
    _run,
    lambda q, k, v, *_: (v.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=working_dtype(q))),
    flops=lambda q, k, v, *_: 2 * math.prod(q[:-1]) * k[1] * (q[-1] + v[-1]),
)
_kernel_backward = register(
    f"softmax_attention_backward({_TENSORS}, Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, float scale, "
    "bool is_causal) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    lambda q, k, v, *_: tuple(x.new_empty(x.shape) for x in (q, k, v)),
    # scores again, and the gradients of weights, q, k and v
    flops=lambda q, k, v, *_: 2 * math.prod(q[:-1]) * k[1] * (3 * q[-1] + 2 * v[-1]),
)


def _forward(tensors: Tensors, options: Options, keep: bool) -> tuple[Tensor, Tensor]:
    q, k, v, mask = tensors
    if q is None:
        raise TypeError("softmax_attention: q is a tensor.")
    with full_precision(q):
        found: tuple[Tensor, Tensor] = _kernel(q, k, v, mask, options.scale, options.is_causal)
    return found


def _backward(
    tensors: Tensors, kept: tuple[Tensor, ...], grads: Tensors, options: Options, needs: tuple[bool, ...]
) -> Tensors:
    out, lse = kept
    if _loses_digits(lse):
        return _by_definition(tensors, grads, options, needs)
    grad_out = torch.zeros_like(out) if grads[0] is None else grads[0].to(out.dtype)
    with full_precision(out):
        found = _kernel_backward(*tensors, out, lse, grad_out, grads[1], options.scale, options.is_causal)
        of_mask = _of_mask(tensors, kept, grad_out, grads[1], options) if needs[3] else None
    return *(g if needed else None for g, needed in zip(found, needs)), of_mask


def _loses_digits(lse: Tensor) -> bool:
    """Whether scores are so large that exp(scores - lse) is too rough for derivatives; looked at on a CPU alone."""
    if not is_direct((lse,)) or not lse.numel():
        return False
    return float(lse.masked_fill(lse == -math.inf, 0.0).abs().amax()) > _LARGE


def _by_definition(tensors: Tensors, grads: Tensors, options: Options, needs: tuple[bool, ...]) -> Tensors:
    """The gradients of the definition, of some queries at a time."""
    q, k, v, mask = tensors
    added = additive_mask(q, k, options.is_causal, mask, None)
    of_q, of_k, of_v, of_mask = (torch.zeros_like(x) for x in (q, k, v, added))
    for rows in row_blocks(q, k):
        own = added if added.shape[2] == 1 else added[:, :, rows]
        outs, pull, *_ = torch.func.vjp(partial(dense, scale=options.scale), q[:, rows], k, v, own)
        coming = [torch.zeros_like(x) if g is None else g[:, rows].to(x.dtype) for x, g in zip(outs, grads)]
        of_q[:, rows], more_k, more_v, more_mask = pull(tuple(coming))
        of_k, of_v = of_k + more_k, of_v + more_v
        of_mask[:, :, rows if added.shape[2] > 1 else slice(None)] += more_mask
    found = (of_q, of_k, of_v, of_mask if mask is None else of_mask.sum_to_size(mask.shape))
    return tuple(x if needed else None for x, needed in zip(found, needs))


def _of_mask(
    tensors: Tensors, kept: tuple[Tensor, ...], grad_out: Tensor, grad_lse: Tensor | None, options: Options
) -> Tensor:
    """Gradient of the mask: that of the scores, which are all in memory for it."""
    q, k, v, mask = tensors
    group = q.shape[2] // k.shape[2]
    q, out, grad_out = (t.to(mask.dtype).transpose(1, 2) for t in (q, kept[0], grad_out))
    k, v = (t.to(mask.dtype).transpose(1, 2).repeat_interleave(group, 1) for t in (k, v))
    scores = torch.matmul(q * options.scale, k.mT) + mask
    lse = kept[1].masked_fill(kept[1] == -math.inf, 0.0).transpose(1, 2)
    delta = (grad_out * out).sum(-1) - (0.0 if grad_lse is None else grad_lse.transpose(1, 2))
    of_weights = torch.matmul(grad_out, v.mT) - delta[..., None]
    of_mask: Tensor = ((scores - lse[..., None]).exp() * of_weights).sum_to_size(mask.shape)
    return of_mask


def _definition(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    q, k, v, mask = tensors
    return dense(q, k, v, additive_mask(q, k, options.is_causal, mask, None), options.scale)


# (q, k, v, additive mask [B or 1, H or 1, Tq, Tk] or None) to (out, lse), heads last
fused = differentiable(_forward, _backward, _definition, batch_dims=(0, 0, 0, 0), out_dims=(0, 0), keep_outputs=True)
