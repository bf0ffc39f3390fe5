r"""Kernelised attention with relative positions, in O(n log n).

    z_i = phi(q_i) sum_j c_{j - i} phi(k_j) v_j^T  /  phi(q_i) sum_j c_{j - i} phi(k_j)          c_s = exp(b_s)

An arbitrary learned bias b of every offset stays inside the exponent of linear attention: both sums over the keys are
Toeplitz products. Two exact algorithms: Fourier transforms (`fourier`), and tiles of the O(n^2) form (`tiles`), which
are faster for short sequences, for decoding, and where the bias is constant from some distance on, because keys beyond
that need no tiles (`far`). With random features on unit vectors this is NPRF attention.

Sizes: B batch, T tokens, H query heads, Hkv key/value heads, K key and V value width, M features, P bias range.
Source: arXiv:2106.12566, equations 8 to 12.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_cu_seqlens, check_devices, check_float, check_qkv, checked
from attensor.ops._operator import Implementation, Operator, reference_of
from attensor.ops.feature_maps import FeatureMap
from attensor.ops.relative_kernel_attention.forms import attend, why_not_cpp
from attensor.ops.relative_kernel_attention.operands import ALGORITHMS, Problem
from attensor.ops.relative_kernel_attention.reference import define

__all__ = ["relative_kernel_attention", "relative_kernel_attention_reference"]

_NAME = "relative_kernel_attention"
_OPERATOR: Operator[Problem, Tensor] = Operator(
    _NAME,
    {
        "cpp": Implementation(lambda problem: attend(problem, "cpp"), why_not_cpp),
        "torch": Implementation(lambda problem: attend(problem, "torch")),
        "reference": Implementation(define),
    },
)


@checked
def relative_kernel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    relative_bias: Tensor,
    feature_map: str | FeatureMap | None = None,
    is_causal: bool = False,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    algorithm: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Kernelised attention with a bias for every offset in O(T (M + V)) memory.

    A head costs O(T log T M V) by transforms, or O(T min(T, P) (M + V) + T M V) by tiles.

    Args:
        q: [B, T, H, K], or [B, height, width, H, K]. Fewer queries than keys are the last ones (decoding).
        k: [B, T, Hkv, K], or on the grid; Hkv divides H.
        v: [B, T, Hkv, V], or on the grid.
        relative_bias: [H, 2 P - 1], b of offset key - query at entry key - query + P - 1; on a grid [H, 2 P - 1,
            2 Q - 1]. Beyond the table its last entries go on, so that any length has a bias.
        feature_map: phi, a name of `FEATURE_MAPS` or a function from [B, T, H, K] to [B, T, H, M], which must not be
            negative; its method `queries`, if it has one, serves q. None: q and k are features already (M = K).
        is_causal: a query sees itself and what comes before it; sequences only.
        key_mask: [B, *space] bool, False for keys that nobody sees (padding).
        cu_seqlens: [N + 1] int32 or int64, bounds of sequences packed into B = 1, which do not see each other. Needs
            max_seqlen for O(T log T); without it, costs O(T^2).
        max_seqlen: length of the longest packed sequence, or more; transforms and `backend="cpp"` need it.
        algorithm: `"tiles"`, `"fft"` or `"fft-float64"` (transforms in float64); None: the faster of the first two, by
            the sizes. The error of transforms is absolute: on a CPU, queries whose weights are all far below the
            largest of their head are computed anew by themselves (or all in float64 where that is faster), elsewhere
            they lose digits, which `"fft-float64"` and `"tiles"` keep. Only tiles keep the future out bit by bit.
        backend: `"reference"` (all weights in memory), `"torch"`, or `"cpp"` (tiles in C++, on a CPU with a compiler);
            the best available if None.
    Returns:
        [B, T, H, V] in v's dtype, or on the grid; 0 where a query sees nothing (keys masked, biases -inf, no features).
        What is not finite reaches the queries that see it: on a CPU exactly, by the definition in blocks of queries;
        on a GPU what shares a product with it. Derivatives of any order and in forward mode; beyond the first with all
        weights in memory.
    Raises:
        ShapeError: sizes disagree, or tensors look like [B, H, T, D].
        TypeError: dtypes differ. ValueError: unknown name, causal grid, packing with a mask.
    Source: arXiv:2106.12566, section 3.
    """
    problem = Problem(q, k, v, relative_bias, feature_map, is_causal, key_mask, cu_seqlens, max_seqlen, algorithm)
    _check(problem)
    return _OPERATOR(problem, backend)


relative_kernel_attention_reference = reference_of(
    relative_kernel_attention, "The definition, all weights in memory; `max_seqlen` and `algorithm` have no effect."
)


def _check(x: Problem) -> None:
    q, k, relative_bias, key_mask, cu_seqlens = x.q, x.k, x.relative_bias, x.key_mask, x.cu_seqlens
    check_qkv(_NAME, q, k, x.v, space_dims=(1, 2))
    check_devices(_NAME, q, relative_bias=relative_bias, key_mask=key_mask, cu_seqlens=cu_seqlens)
    dims = q.ndim - 3
    fits = relative_bias.ndim == dims + 1 and relative_bias.shape[0] == q.shape[-2]
    if not fits or any(size % 2 == 0 for size in relative_bias.shape[1:]):
        raise ShapeError(
            f"{_NAME}: relative_bias must be [H, 2 P - 1 for each of {dims} axes] with H = {q.shape[-2]}, "
            f"got {list(relative_bias.shape)}."
        )
    check_float(_NAME, "relative_bias", relative_bias, q)
    shorter = dims == 1 and q.shape[1] < k.shape[1]
    if q.shape[1:-2] != k.shape[1:-2] and not shorter:
        raise ShapeError(
            f"{_NAME}: the tokens of q {list(q.shape)} must be those of k {list(k.shape)}, or the last of them in a "
            "sequence. Tensors laid out as [B, H, T, D]? Call .transpose(1, 2) first."
        )
    if x.is_causal and dims != 1:
        raise ValueError(f"{_NAME}: is_causal needs one axis, got {dims}; there is no order on a grid.")
    if x.algorithm is not None and x.algorithm not in ALGORITHMS:
        raise ValueError(f"{_NAME}: algorithm must be None or one of {', '.join(ALGORITHMS)}, got {x.algorithm!r}.")
    if key_mask is not None and (key_mask.dtype != torch.bool or key_mask.shape != k.shape[:-2]):
        raise ShapeError(
            f"{_NAME}: key_mask must be bool {list(k.shape[:-2])} (True = attend), got {list(key_mask.shape)} "
            f"{key_mask.dtype}."
        )
    if x.max_seqlen is not None and x.max_seqlen < min(1, k.shape[1]):
        raise ValueError(f"{_NAME}: max_seqlen must be at least 1, got {x.max_seqlen}.")
    if cu_seqlens is not None:
        check_cu_seqlens(_NAME, cu_seqlens, q, x.max_seqlen)
        if dims != 1 or shorter or key_mask is not None:
            raise ValueError(f"{_NAME}: cu_seqlens packs whole sequences: one axis, as many queries as keys, no mask.")
        if x.algorithm in ("fft", "fft-float64") and x.max_seqlen is None:
            raise ValueError(
                f"{_NAME}: algorithm={x.algorithm!r} with cu_seqlens needs max_seqlen, the longest sequence's length."
            )
