r"""Softmax attention: every query averages the values, weighted by the softmax of its scores.

    s_ij = scale * q_i . k_j + mask_ij,   o_i = sum_j softmax_j(s_ij) v_j,   lse_i = log sum_j exp(s_ij)

Sizes: B batch, Tq queries, Tk keys, H query heads, Hkv key/value heads (query head h reads h // (H / Hkv)), K key dim,
V value dim.
Source: arXiv:1706.03762, equation 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_broadcast, check_cu_seqlens, check_devices, check_qkv, checked, scale_of
from attensor.ops._operator import Implementation, Operator, reference_of
from attensor.ops.softmax_attention.reference import Attended, Problem, define
from attensor.ops.softmax_attention.torch import softmax_attention_torch

__all__ = ["softmax_attention", "softmax_attention_reference"]

_OPERATOR: Operator[Problem, Attended] = Operator(
    "softmax_attention",
    {
        "reference": Implementation(define),
        "torch": Implementation(softmax_attention_torch),
    },
)


@checked
def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    return_lse: bool = False,
    generator: torch.Generator | None = None,
    backend: str | None = None,
) -> Attended:
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
            pass 0.0 in evaluation. On a CPU all scores are in memory.
        cu_seqlens: [N + 1] int32 or int64, where the packed sequences start and end: cu_seqlens[0] = 0, the last is
            Tq = Tk; or two of them, of queries and of keys, whose n-th sequences belong together. Needs B = 1. Causal
            counts inside each sequence, from its end. Costs a mask of Tq Tk numbers.
        return_lse: also return the log-sum-exp of the scores; differentiable. On a GPU all scores are in memory then.
        generator: source of the dropout's randomness; PyTorch's own if None.
        backend: `"reference"` or `"torch"`; the best available if None.
    Returns:
        out [B, Tq, H, V] in v's dtype, 0 where a query may attend to nothing; with `return_lse` also lse [B, Tq, H] in
        at least float32, natural logarithm, -inf there.
    Raises:
        ShapeError: sizes disagree, or the tensors look like [B, H, T, D].
        TypeError: dtypes differ or are not floating. ValueError: devices differ, dropout_p is not in [0, 1).
    Source: arXiv:1706.03762, equation 1. Derivatives of any order and in forward mode; beyond the first with all scores
        in memory, and on a GPU by `backend="reference"`.
    """
    check_qkv("softmax_attention", q, k, v)
    check_devices("softmax_attention", q, attn_mask=attn_mask)
    if attn_mask is not None:
        check_broadcast("softmax_attention", "attn_mask", attn_mask, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    bounds = None if cu_seqlens is None else _bounds(cu_seqlens, q, k)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"softmax_attention: dropout_p must be in [0, 1), got {dropout_p}.")
    scale = scale_of(q, scale)
    problem = Problem(q, k, v, scale, is_causal, attn_mask, dropout_p, bounds, return_lse, generator)
    return _OPERATOR(problem, backend)


softmax_attention_reference = reference_of(softmax_attention, "The definition with all scores in memory.")


def _bounds(cu_seqlens: Tensor | tuple[Tensor, Tensor], q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Checked bounds of the packed queries and keys."""
    name = "softmax_attention"
    if isinstance(cu_seqlens, Tensor):
        if q.shape[1] != k.shape[1]:
            raise ShapeError(
                f"{name}: one cu_seqlens packs as many keys as queries, got {q.shape[1]} and {k.shape[1]} tokens; pass "
                "two, (of queries, of keys)."
            )
        check_cu_seqlens(name, cu_seqlens, q)
        return cu_seqlens, cu_seqlens
    for bounds, x in zip(cu_seqlens, (q, k)):
        check_cu_seqlens(name, bounds, x)
    if cu_seqlens[0].shape != cu_seqlens[1].shape:
        first, second = (len(bounds) for bounds in cu_seqlens)
        raise ShapeError(f"{name}: both cu_seqlens must bound as many sequences, got {first} and {second} bounds.")
    return cu_seqlens
