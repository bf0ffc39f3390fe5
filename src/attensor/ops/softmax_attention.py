r"""Softmax attention: every query averages the values, weighted by the softmax of its scores.

    s_ij = scale * q_i . k_j + mask_ij,   o_i = sum_j softmax_j(s_ij) v_j,   lse_i = log sum_j exp(s_ij)

Sizes: B batch, Tq queries, Tk keys, H query heads, Hkv key/value heads (query head h reads h // (H / Hkv)), K key dim,
V value dim.
Source: arXiv:1706.03762, equation 1.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_broadcast, check_cu_seqlens, check_qkv
from attensor.ops._dispatch import Operator

__all__ = ["softmax_attention", "softmax_attention_reference"]


def softmax_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    cu_seqlens: Tensor | None = None,
    return_lse: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition above with all scores in memory. Same arguments and result as `softmax_attention`."""
    compute = torch.promote_types(q.dtype, torch.float32)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    groups = q.shape[2] // k.shape[2]
    keys, values = (t.to(compute).repeat_interleave(groups, dim=2) for t in (k, v))
    scores = torch.einsum("bihk,bjhk->bhij", q.to(compute) * scale, keys)

    allowed = _allowed(q, k, is_causal, cu_seqlens)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        allowed = allowed & attn_mask
    elif attn_mask is not None:
        allowed = allowed & (attn_mask != float("-inf"))
        scores = scores + attn_mask.to(compute)
    # A row that may attend to nothing is given finite scores, and its weights are removed afterwards: a softmax of
    # nothing but -inf is NaN, which PyTorch's anomaly detection would stop at, although it is masked later on.
    empty = ~allowed.any(-1, keepdim=True)
    scores = scores.masked_fill(~allowed, float("-inf")).masked_fill(empty, 0.0)
    weights = scores.softmax(-1).masked_fill(empty, 0.0)
    if dropout_p > 0.0:
        kept = torch.rand(weights.shape, generator=generator, device=q.device, dtype=compute) >= dropout_p
        weights = weights * kept / (1.0 - dropout_p)
    out = torch.einsum("bhij,bjhv->bihv", weights, values).to(v.dtype)
    if not return_lse:
        return out
    return out, scores.logsumexp(-1).masked_fill(empty[..., 0], float("-inf")).transpose(1, 2)


@overload
def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    cu_seqlens: Tensor | None = None,
    return_lse: Literal[False] = False,
    generator: torch.Generator | None = None,
    backend: str | None = None,
) -> Tensor: ...


@overload
def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    cu_seqlens: Tensor | None = None,
    return_lse: Literal[True],
    generator: torch.Generator | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    cu_seqlens: Tensor | None = None,
    return_lse: bool = False,
    generator: torch.Generator | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention: O(Tq Tk (K + V)) a head in time; memory linear in the tokens unless a line below says more.

    Args:
        q: [B, Tq, H, K], any floating dtype.
        k: [B, Tk, Hkv, K]; Hkv divides H.
        v: [B, Tk, Hkv, V].
        scale: multiplies q k; `K ** -0.5` if None.
        is_causal: query i sees keys up to i + Tk - Tq, so that the last query sees every key.
        attn_mask: broadcasts to [B, H, Tq, Tk]; bool (True = attend) or floating (added to the scores; differentiable,
            then with all scores in memory).
        dropout_p: share of the weights that is set to zero, the others scaled by 1 / (1 - dropout_p). Always applied:
            pass 0.0 in evaluation. All scores are in memory.
        cu_seqlens: [N + 1] int32 or int64, where the packed sequences start and end: cu_seqlens[0] = 0, the last is
            Tq = Tk. Needs B = 1. Causal counts inside each sequence. Costs a mask of T^2 bytes.
        return_lse: also return the log-sum-exp of the scores. It is differentiable; when a gradient is needed, all
            scores are in memory.
        generator: source of the dropout's randomness; PyTorch's own if None.
        backend: `"reference"` or `"torch"`; the best available if None.
    Returns:
        out [B, Tq, H, V] in v's dtype, 0 where a query may attend to nothing; with `return_lse` also lse [B, Tq, H] in
        at least float32, natural logarithm, -inf there.
    Raises:
        ShapeError: sizes disagree, or the tensors look like [B, H, T, D].
        TypeError: dtypes differ or are not floating. ValueError: devices differ, dropout_p is not in [0, 1).
    Source: arXiv:1706.03762, equation 1. The torch back-end has first derivatives only; `backend="reference"` has all.
    """
    check_qkv("softmax_attention", q, k, v)
    if attn_mask is not None:
        check_broadcast("softmax_attention", "attn_mask", attn_mask, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    if cu_seqlens is not None:
        check_cu_seqlens("softmax_attention", cu_seqlens, q)
        if q.shape[1] != k.shape[1]:
            raise ShapeError(
                f"softmax_attention: packed queries and keys share cu_seqlens, so q and k need the same "
                f"number of tokens, got {q.shape[1]} and {k.shape[1]}."
            )
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"softmax_attention: dropout_p must be in [0, 1), got {dropout_p}.")
    run = _OPERATOR.choose(backend, q.device)
    result: Tensor | tuple[Tensor, Tensor] = run(
        q,
        k,
        v,
        scale=scale,
        is_causal=is_causal,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        cu_seqlens=cu_seqlens,
        return_lse=return_lse,
        generator=generator,
    )
    return result


def _torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None,
    is_causal: bool,
    attn_mask: Tensor | None,
    dropout_p: float,
    cu_seqlens: Tensor | None,
    return_lse: bool,
    generator: torch.Generator | None,
) -> Tensor | tuple[Tensor, Tensor]:
    in_memory = dropout_p > 0.0 and generator is not None  # PyTorch's attention takes no generator
    if return_lse:
        tensors = [q, k, v] if attn_mask is None else [q, k, v, attn_mask]
        needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        in_memory = in_memory or needs_gradient or dropout_p > 0.0 or q.device.type != "cpu"
    # The fused kernel has no batching rule: vmap would run it once for each entry.
    if in_memory or (not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()):
        return softmax_attention_reference(
            q,
            k,
            v,
            scale=scale,
            is_causal=is_causal,
            attn_mask=attn_mask,
            dropout_p=dropout_p,
            cu_seqlens=cu_seqlens,
            return_lse=return_lse,
            generator=generator,
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    square_causal = is_causal and q.shape[1] == k.shape[1] and attn_mask is None and cu_seqlens is None
    mask = attn_mask
    if cu_seqlens is not None or (is_causal and not square_causal):
        mask = _combine(_allowed(q, k, is_causal, cu_seqlens), attn_mask)
    if mask is not None:
        mask = (mask if mask.dtype == torch.bool else mask.to(q.dtype)).reshape((1,) * (4 - mask.ndim) + mask.shape)
    # The fused kernels want one head size; zeros change neither the scores nor the other columns of the output.
    width, size = v.shape[-1], max(q.shape[-1], v.shape[-1])
    q, k, v = (F.pad(t, (0, size - t.shape[-1])).transpose(1, 2) for t in (q, k, v))
    if not return_lse:
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=dropout_p,
            is_causal=square_causal,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out.transpose(1, 2)[..., :width]
    return _fused_with_lse(q, k, v, mask, square_causal, scale, width)


def _fused_with_lse(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float, width: int
) -> tuple[Tensor, Tensor]:
    """The CPU kernel below `F.scaled_dot_product_attention`, which also returns lse; heads first."""
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, float("-inf"))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, is_causal, attn_mask=mask, scale=scale
    )
    lse = lse.transpose(1, 2)
    if mask is not None:
        seen = (mask != float("-inf")).any(-1).expand(-1, q.shape[1], -1).transpose(1, 2)
        lse = lse.masked_fill(~seen, float("-inf"))
    return out.transpose(1, 2)[..., :width], lse


_OPERATOR = Operator("softmax_attention", {"reference": softmax_attention_reference, "torch": _torch})


def _allowed(q: Tensor, k: Tensor, is_causal: bool, cu_seqlens: Tensor | None) -> Tensor:
    """[Tq, Tk] bool: causal aligned bottom-right, and only inside a packed sequence."""
    queries = torch.arange(q.shape[1], device=q.device)[:, None]
    keys = torch.arange(k.shape[1], device=q.device)
    late = queries + (k.shape[1] - q.shape[1])
    allowed = keys <= late if is_causal else (keys >= 0).expand(q.shape[1], -1)
    if cu_seqlens is not None:
        sequence = torch.searchsorted(cu_seqlens, keys.to(cu_seqlens.dtype), right=True)
        allowed = allowed & (sequence[:, None] == sequence)
    return allowed


def _combine(allowed: Tensor, attn_mask: Tensor | None) -> Tensor:
    if attn_mask is None:
        return allowed
    return allowed & attn_mask if attn_mask.dtype == torch.bool else attn_mask.masked_fill(~allowed, float("-inf"))
