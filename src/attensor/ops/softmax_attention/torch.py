"""Softmax attention by torch's fused kernels, and by the definition where they have none."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attensor.ops._confine import is_finite, may_hide
from attensor.ops._kernel import is_direct
from attensor.ops._precision import common_dtype, full_precision
from attensor.ops.softmax_attention.function import Options, fused
from attensor.ops.softmax_attention.reference import Attended, Problem, additive_mask, define, define_by_rows

__all__ = ["softmax_attention_torch"]


def softmax_attention_torch(x: Problem) -> Attended:
    """See `softmax_attention`."""
    # dropout puts all weights in memory on a CPU; empty tensors end the process inside the kernel
    is_empty = not all(t.numel() for t in (x.q, x.k, x.v))
    if is_empty or (x.dropout_p > 0.0 and (x.q.device.type == "cpu" or x.generator is not None)):
        return define(x)
    if x.q.device.type != "cpu":
        return _on_device(x)
    mask, is_causal = _mask(x)
    if mask is not None and mask.requires_grad and torch.is_grad_enabled() and torch.compiler.is_exporting():
        return define(x)  # an exported program has torch's derivatives, and of the kernel's mask there is none
    # the kernel masks before it scales: a scale of 0 or less turns -inf into NaN or +inf
    sign = 1.0 if x.scale > 0 else -1.0 if x.scale < 0 else 0.0
    q = x.q if sign == 1.0 else x.q * sign
    k, v, is_mixed = x.k, x.v, not x.q.dtype == x.k.dtype == x.v.dtype
    if is_mixed:
        q, k, v = (t.to(common_dtype(q, k, v)) for t in (q, k, v))
    out, lse = fused((q, k, v, mask), Options(abs(x.scale) or 1.0, is_causal))
    # the kernel multiplies weights of 0 with values that a query does not see
    sees_all = mask is None and not is_causal
    if not (sees_all or is_finite(out)) or (may_hide(lse) and not is_finite(q, k)):
        return define_by_rows(x)
    out = out.to(x.v.dtype) if is_mixed else out
    return (out, lse) if x.return_lse else out


def _on_device(x: Problem) -> Attended:
    """On a GPU: torch chooses the kernel, which gives no log-sum-exp and has first derivatives only."""
    if x.return_lse or x.scale <= 0 or (not is_direct((x.q, x.k, x.v)) and not torch.compiler.is_compiling()):
        return define(x)
    mask, is_causal = _mask(x)
    width, size = x.v.shape[-1], max(x.q.shape[-1], x.v.shape[-1])
    dtype = common_dtype(x.q, x.k, x.v)
    q, k, v = (F.pad(t.to(dtype), (0, size - t.shape[-1])).transpose(1, 2) for t in (x.q, x.k, x.v))
    with full_precision(q):
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if mask is None else _narrowed(mask, q.dtype),
            dropout_p=x.dropout_p,
            is_causal=is_causal,
            scale=x.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
    return out.transpose(1, 2)[..., :width].to(x.v.dtype)


def _narrowed(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """In a half precision, whose range a finite number does not leave."""
    limits = torch.finfo(dtype)
    return torch.where(mask == -math.inf, mask, mask.clamp(limits.min, limits.max)).to(dtype)


def _mask(x: Problem) -> tuple[Tensor | None, bool]:
    """The mask that is added, unless nothing is closed or the kernel's own triangle says it all; that is the flag."""
    queries, keys = x.q.shape[1], x.k.shape[1]
    if x.attn_mask is None and x.cu_seqlens is None:
        if not x.is_causal or queries == 1:
            return None, False
        if queries == keys:
            return None, True
    return additive_mask(x.q, x.k, x.is_causal, x.attn_mask, x.cu_seqlens), False
