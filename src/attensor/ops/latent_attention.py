r"""Latent attention: keys and values of all heads are products of one short vector a token, the only thing kept of it.

    k_h = W_h c,   v_h = U_h c,   s_ij = scale (q_i . k_j + qr_i . kr_j),   o_i = sum_j softmax_j(s_ij) v_j

    naive:      k_h and v_h are computed for every token;  best where there are as many queries as tokens
    absorbed:   s_ij = scale ((W_h^T q_i) . c_j + qr_i . kr_j),  o_i = U_h sum_j softmax_j(s_ij) c_j:  nothing is made
                of the past, which is read as it is kept;  best where few queries see many tokens

Both are the same function. The fused kernel takes one key, (c_j, kr_j), which lies in memory like that where there is
one latent; of several, each would need a copy of the rotary key beside it, which costs more than the attention itself.
Few queries therefore have their rotary scores computed apart and added to the kernel's, as a mask is.
Sizes: B batch, Tq queries, Tk tokens, H heads, G latents a token (head h reads h // (H / G)), N key width, V value
width, R width of a latent, D width of the rotary part.
Source: arXiv:2405.04434, section 2.1; G > 1: arXiv:2505.21487, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_broadcast, check_cu_seqlens, check_devices, check_float, checked, is_autocast
from attensor.ops._confine import is_finite
from attensor.ops._kernel import is_direct
from attensor.ops._operator import Implementation, Operator, reference_of
from attensor.ops._precision import full_precision, working_dtype
from attensor.ops.softmax_attention import softmax_attention
from attensor.ops.softmax_attention.reference import Attended, additive_mask, dense

__all__ = ["latent_attention", "latent_attention_reference"]

_NAME = "latent_attention"


@dataclass(frozen=True)
class Problem:
    """Arguments of `latent_attention`, by the same names; without a rotary part it has no columns."""

    q: Tensor
    latent: Tensor
    key_weight: Tensor
    value_weight: Tensor
    q_rotary: Tensor
    k_rotary: Tensor
    scale: float
    is_causal: bool
    attn_mask: Tensor | None
    cu_seqlens: Tensor | None
    form: str | None
    return_lse: bool


@checked
def latent_attention(
    q: Tensor,
    latent: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    *,
    q_rotary: Tensor | None = None,
    k_rotary: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    form: Literal["naive", "absorbed"] | None = None,
    return_lse: bool = False,
) -> Attended:
    """Attention to latents: memory R + D numbers a token, whatever the heads.

    Args:
        q: [B, Tq, H, N], any floating dtype.
        latent: [B, Tk, G, R]; G divides H.
        key_weight: [H, N, R], makes keys of latents.
        value_weight: [H, V, R], makes values of latents.
        q_rotary: [B, Tq, H, D], the part of a query that has turned with its position; None without one.
        k_rotary: [B, Tk, 1, D], that of the keys, one for all heads. Where it is the columns behind the one latent in
            memory, as in one tensor [.., R + D] of a cache, or where queries to several latents are few (on a CPU
            H Tq <= G (R + D)), the absorbed form copies neither.
        scale: multiplies scores; `(N + D) ** -0.5` if None.
        is_causal: query i sees tokens up to i + Tk - Tq, so that the last query sees every token.
        attn_mask: broadcasts to [B, H, Tq, Tk]; bool (True = attend) or floating (added to the scores).
        cu_seqlens: [N + 1], where the packed sequences start and end; needs B = 1 and Tq = Tk.
        form: `"naive"` or `"absorbed"`; what takes fewer products if None (in a trace: absorbed for one query).
        return_lse: also return the log-sum-exp of the scores, by which `merge_attention` merges parts of the tokens.
    Returns:
        [B, Tq, H, V] in q's dtype; 0 where a query may attend to nothing. With `return_lse` a pair of that and
        [B, Tq, H] in at least float32, -inf there. Derivatives of any order.
    Raises:
        ShapeError: sizes disagree, or one rotary part without the other.
        TypeError: dtypes differ or are not floating. ValueError: devices differ.
    Cost: naive O(Tk H R (N + V) + Tq Tk H (N + D + V)), absorbed O(Tq H R (N + V) + Tq Tk H (2 R + D)).
    Source: arXiv:2405.04434, equations 9 to 19.
    """
    q_rotary, k_rotary = _both(q, latent, q_rotary, k_rotary)
    _check(q, latent, key_weight, value_weight, q_rotary, k_rotary)
    _check_visible(q, latent, attn_mask, cu_seqlens)
    width = q.shape[-1] + q_rotary.shape[-1]
    scale = float(scale) if scale is not None else float(max(width, 1) ** -0.5)
    tensors = (latent, key_weight, value_weight, q_rotary, k_rotary)
    if is_autocast(q.device.type):
        tensors = tuple(t.to(q.dtype) for t in tensors)  # type: ignore[assignment]
    with full_precision(q):
        return _OPERATOR(Problem(q, *tensors, scale, is_causal, attn_mask, cu_seqlens, form, return_lse))


latent_attention_reference = reference_of(latent_attention, "All keys, values and scores in memory.")


def _both(q: Tensor, latent: Tensor, q_rotary: Tensor | None, k_rotary: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rotary parts; of no columns if there are none."""
    if q_rotary is not None and k_rotary is not None:
        return q_rotary, k_rotary
    _check_rank(q=q, latent=latent)
    if q_rotary is not None or k_rotary is not None:
        raise ShapeError(f"{_NAME}: q_rotary and k_rotary are two parts of one score: pass both or neither.")
    return q[..., :0], latent[..., :1, :0]


def _check_visible(q: Tensor, latent: Tensor, attn_mask: Tensor | None, cu_seqlens: Tensor | None) -> None:
    check_devices(_NAME, q, attn_mask=attn_mask)
    if attn_mask is not None:
        check_broadcast(_NAME, "attn_mask", attn_mask, (q.shape[0], q.shape[2], q.shape[1], latent.shape[1]))
    if cu_seqlens is None:
        return
    check_cu_seqlens(_NAME, cu_seqlens, q)
    if q.shape[1] != latent.shape[1]:
        raise ShapeError(
            f"{_NAME}: with cu_seqlens latent must have the {q.shape[1]} tokens of q, got {latent.shape[1]}."
        )


def _check_rank(**tensors: Tensor) -> None:
    for label, tensor in tensors.items():
        rank = 3 if label.endswith("weight") else 4
        if tensor.ndim != rank:
            layout = "[H, N or V, R]" if rank == 3 else "[B, T, heads, width]"
            raise ShapeError(f"{_NAME}: {label} must be {layout}, got {list(tensor.shape)}.")


def _check(
    q: Tensor, latent: Tensor, key_weight: Tensor, value_weight: Tensor, q_rotary: Tensor, k_rotary: Tensor
) -> None:
    named = {
        "q": q, "latent": latent, "key_weight": key_weight, "value_weight": value_weight,
        "q_rotary": q_rotary, "k_rotary": k_rotary,
    }  # fmt: skip
    _check_rank(**named)
    for label, tensor in named.items():
        check_float(_NAME, label, tensor, q)
        if tensor.dtype != q.dtype and not is_autocast(q.device.type):
            raise TypeError(
                f"{_NAME}: all tensors must share one floating dtype, got {label} {tensor.dtype} beside q {q.dtype}; "
                "use .to(q.dtype)."
            )
    batch, queries, heads, width = q.shape
    tokens, groups, rank = latent.shape[1:]
    if groups == 0 or heads == 0 or heads % groups:
        raise ShapeError(
            f"{_NAME}: the {heads} heads of q {list(q.shape)} must be a multiple of the {groups} latents of latent "
            f"{list(latent.shape)}."
        )
    rotary = q_rotary.shape[-1]
    expected = {
        "latent": [batch, tokens, groups, rank],
        "key_weight": [heads, width, rank],
        "value_weight": [heads, value_weight.shape[1], rank],
        "q_rotary": [batch, queries, heads, rotary],
        "k_rotary": [batch, tokens, 1, rotary],
    }
    for label, sizes in expected.items():
        if list(named[label].shape) != sizes:
            raise ShapeError(
                f"{_NAME}: {label} must be {sizes} beside q {list(q.shape)}, latent {list(latent.shape)} and rotary "
                f"parts of width {rotary}, got {list(named[label].shape)}."
            )


def _by_head(latent: Tensor, weight: Tensor) -> Tensor:
    """Latents [B, T, G, R] times weights [H, D, R]: [B, T, H, D]."""
    groups = latent.shape[2]
    by_group = torch.unflatten(weight, 0, (groups, weight.shape[0] // groups))
    return torch.einsum("btgr,ghdr->btghd", latent, by_group).flatten(2, 3)


def _define(x: Problem) -> Attended:
    dtype = working_dtype(x.q)
    latent, key_weight, value_weight = (t.to(dtype) for t in (x.latent, x.key_weight, x.value_weight))
    k, v = _by_head(latent, key_weight), _by_head(latent, value_weight)
    q = torch.cat([x.q, x.q_rotary], -1).to(dtype)
    k = torch.cat([k, x.k_rotary.to(dtype).expand(-1, -1, k.shape[2], -1)], -1)
    bounds = None if x.cu_seqlens is None else (x.cu_seqlens, x.cu_seqlens)
    mask = additive_mask(q, k, x.is_causal, x.attn_mask, bounds)
    out, lse = dense(q, k, v, mask, x.scale)
    out = out.to(x.q.dtype)
    return (out, lse) if x.return_lse else out


def _torch(x: Problem) -> Attended:
    return _absorbed(x) if _is_absorbed(x) else _naive(x)


def _is_absorbed(x: Problem) -> bool:
    """Whether the absorbed form takes fewer products; a trace is not to ask for free sizes."""
    queries, tokens = x.q.shape[1], x.latent.shape[1]
    if x.form is not None:
        return x.form == "absorbed"
    if not is_direct((x.q,)) or torch.compiler.is_compiling():
        return type(queries) is int and queries == 1
    rank, rotary = x.latent.shape[-1], x.q_rotary.shape[-1]
    width, size = x.key_weight.shape[1], x.value_weight.shape[1]
    pairs = queries * tokens * (0.5 if x.is_causal and queries == tokens else 1.0)
    naive = tokens * rank * (width + size) + pairs * (width + rotary + size)
    return queries * rank * (width + size) + pairs * (2 * rank + rotary) < naive


def _naive(x: Problem) -> Attended:
    k, v = _by_head(x.latent, x.key_weight), _by_head(x.latent, x.value_weight)
    q = torch.cat([x.q, x.q_rotary], -1)
    k = torch.cat([k, x.k_rotary.expand(-1, -1, k.shape[2], -1)], -1)
    return _softmax(x, q, k, v)


def _absorbed(x: Problem) -> Attended:
    q, rank = torch.einsum("bthn,hnr->bthr", x.q, x.key_weight), x.latent.shape[-1]
    scores = _rotary_scores(x) if _copies_more(x) else None
    if scores is not None and is_finite(scores):  # of what is not finite the kernel's mask says nothing
        # one query sees all tokens: no triangle has to be put into a mask that is there
        is_causal = x.is_causal and x.q.shape[1] > 1
        x, kept = replace(x, attn_mask=_added(scores, x.attn_mask), is_causal=is_causal), x.latent
    else:
        q, kept = torch.cat([q, x.q_rotary], -1), _joined(x.latent, x.k_rotary)
    read = _softmax(x, q, kept, kept[..., :rank])  # another view even of all: a compiler refuses one tensor as two
    latents, lse = read if x.return_lse else (read, None)
    out = torch.einsum("bthr,hvr->bthv", latents, x.value_weight)
    return (out, lse) if x.return_lse else out


def _copies_more(x: Problem) -> bool:
    """Whether latents joined with rotary keys are a larger copy than the rotary scores by themselves.

    One latent a token is joined where it lies, if it comes from a cache: see `_joined`.
    """
    (queries, heads), (groups, rank), further = x.q.shape[1:3], x.latent.shape[2:], x.k_rotary.shape[-1]
    if groups == 1 or further == 0 or x.q.device.type != "cpu" or type(queries) is not int:
        return False
    return heads * queries <= groups * (rank + further)


def _rotary_scores(x: Problem) -> Tensor:
    """[B, H, Tq, Tk] in the working precision."""
    dtype = working_dtype(x.q)
    return torch.einsum("bihd,bjd->bhij", x.q_rotary.to(dtype) * x.scale, x.k_rotary[:, :, 0].to(dtype))


def _added(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores with a mask on top: one mask for both."""
    if mask is None:
        return scores
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)


def _softmax(x: Problem, q: Tensor, k: Tensor, v: Tensor) -> Attended:
    return softmax_attention(
        q,
        k,
        v,
        scale=x.scale,
        is_causal=x.is_causal,
        attn_mask=x.attn_mask,
        cu_seqlens=x.cu_seqlens,
        return_lse=x.return_lse,
        backend="torch",
    )


def _joined(latent: Tensor, k_rotary: Tensor) -> Tensor:
    """[B, Tk, G, R + D]; no copy where one follows the other in memory, and no gradient is asked for."""
    width, further = latent.shape[-1], k_rotary.shape[-1]
    if further == 0:
        return latent
    is_one = (
        is_direct((latent, k_rotary))
        and latent.shape[2] == 1
        and not (torch.is_grad_enabled() and (latent.requires_grad or k_rotary.requires_grad))
        and latent.numel() > 0
        and latent.stride() == k_rotary.stride()
        and latent.stride(-1) == 1
        and latent.is_neg() == k_rotary.is_neg()
        and k_rotary.data_ptr() == latent.data_ptr() + width * latent.element_size()
        and latent.untyped_storage().data_ptr() == k_rotary.untyped_storage().data_ptr()
    )
    if is_one:
        return latent.as_strided((*latent.shape[:-1], width + further), latent.stride())
    return torch.cat([latent, k_rotary.expand(*latent.shape[:-1], further)], -1)


_OPERATOR: Operator[Problem, Attended] = Operator(
    _NAME, {"reference": Implementation(_define), "torch": Implementation(_torch)}
)
