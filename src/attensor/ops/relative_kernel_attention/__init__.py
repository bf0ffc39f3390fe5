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

from functools import partial

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_cu_seqlens, check_qkv
from attensor.ops._dispatch import Operator
from attensor.ops.feature_maps import FeatureMap, resolve_feature_map
from attensor.ops.relative_kernel_attention.cost import faster_algorithm
from attensor.ops.relative_kernel_attention.function import KernelSum
from attensor.ops.relative_kernel_attention.operands import ALGORITHMS, Geometry
from attensor.ops.relative_kernel_attention.packing import Rows, segments
from attensor.ops.relative_kernel_attention.reference import dense

__all__ = ["relative_kernel_attention", "relative_kernel_attention_reference"]

_NAME = "relative_kernel_attention"


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
    fft_dtype: torch.dtype | None = None,
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
        max_seqlen: length of the longest packed sequence, or more.
        algorithm: `"fft"` or `"tiles"`; None: the faster one, by the sizes.
        fft_dtype: precision of the transforms, at least float32; the features' if None. Their error is absolute:
            about 1e-6 of the largest weighted sum, so that queries whose weights are all far below the largest of
            their head lose digits; float64 or `"tiles"` keep them. Only tiles keep the future out bit by bit.
        backend: `"reference"` (all weights in memory), `"torch"`, or `"cpp"` (tiles in C++, on a CPU with a compiler);
            the best available if None.
    Returns:
        [B, T, H, V] in v's dtype, or on the grid; 0 where every key is masked. First derivatives (`"reference"`: all).
    Raises:
        ShapeError: sizes disagree, or tensors look like [B, H, T, D].
        TypeError: dtypes differ. ValueError: unknown name, causal grid, packing with a mask.
    Source: arXiv:2106.12566, section 3.
    """
    check_qkv(_NAME, q, k, v, space_dims=(1, 2))
    _check(q, k, relative_bias, is_causal, key_mask, cu_seqlens, algorithm)
    phi_q, phi_k = _features(q, k, feature_map)
    dtype = torch.promote_types(torch.promote_types(phi_q.dtype, phi_k.dtype), torch.float32)
    phi_q, phi_k, values = phi_q.to(dtype), phi_k.to(dtype), v.to(dtype)
    if key_mask is not None:
        phi_k = phi_k.masked_fill(~key_mask[..., None, None], 0.0)
    rows = None
    if algorithm == "fft" and cu_seqlens is not None and max_seqlen is None:
        raise ValueError(f"{_NAME}: algorithm='fft' with cu_seqlens needs max_seqlen, the longest sequence's length.")
    if cu_seqlens is not None and max_seqlen is not None:
        rows = Rows(cu_seqlens, max_seqlen, q.shape[1])
        phi_q, phi_k, values = (rows.unpack(t) for t in (phi_q, phi_k, values))
    reach = relative_bias.shape[1] // 2 if relative_bias.ndim == 2 else None
    geometry = Geometry(tuple(phi_q.shape[1:-2]), tuple(phi_k.shape[1:-2]), is_causal, reach)
    segment = None if cu_seqlens is None or rows is not None else segments(cu_seqlens, q.shape[1])
    if segment is not None:
        algorithm = "tiles"
    groups = q.shape[-2] // k.shape[-2]
    heads_first = [t.flatten(1, -3).transpose(1, 2) for t in (phi_q, phi_k, values)]
    heads_first[1:] = [t.repeat_interleave(groups, 1) if groups > 1 else t for t in heads_first[1:]]
    log_weights = _log_weights(relative_bias.to(dtype), geometry)
    run = _OPERATOR.choose(backend, q.device)
    out = run(*heads_first, log_weights, segment, geometry, algorithm, fft_dtype)
    out = out.transpose(1, 2).unflatten(1, geometry.queries)
    return (out if rows is None else rows.pack(out)).to(v.dtype)


def relative_kernel_attention_reference(
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
    fft_dtype: torch.dtype | None = None,
) -> Tensor:
    """The definition of `relative_kernel_attention`; `algorithm` and `fft_dtype` have no effect."""
    return relative_kernel_attention(
        q,
        k,
        v,
        relative_bias=relative_bias,
        feature_map=feature_map,
        is_causal=is_causal,
        key_mask=key_mask,
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen,
        algorithm=algorithm,
        fft_dtype=fft_dtype,
        backend="reference",
    )


def _torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_weights: Tensor,
    segment: Tensor | None,
    geometry: Geometry,
    algorithm: str | None,
    fft_dtype: torch.dtype | None,
    *,
    backend: str = "torch",
) -> Tensor:
    """The `torch` and `cpp` back-ends: numerator and denominator, its last column, in one sum."""
    algorithm = algorithm or faster_algorithm(geometry, q.shape[-1], v.shape[-1] + 1, backend)
    # a factor common to all offsets of a head cancels; without this one, large biases would overflow
    largest = log_weights.detach().flatten(1).amax(1) if log_weights.numel() else log_weights.new_zeros(q.shape[1])
    coefficients = (log_weights - largest.view(-1, *[1] * (log_weights.ndim - 1))).exp()
    if algorithm == "tiles" and geometry.queries == (1,) and segment is None:
        return _one_query(q, k, v, coefficients)
    tensors = [q, k, v, coefficients]
    if algorithm == "fft" and fft_dtype is not None:
        tensors = [t.to(torch.promote_types(q.dtype, fft_dtype)) for t in tensors]
    # C++ knows no segments
    method = "cpp" if backend == "cpp" and algorithm == "tiles" and segment is None else algorithm
    sums: Tensor = KernelSum.apply(*tensors, segment, geometry, method)  # type: ignore[no-untyped-call]
    numerator, denominator = sums[..., :-1], sums[..., -1:]
    minimum = torch.zeros_like(denominator)
    if algorithm == "fft" and denominator.numel():
        # what lies below is rounding, and may be negative
        largest = denominator.detach().amax(2, keepdim=True)
        minimum = (8 * torch.finfo(sums.dtype).eps * largest).expand_as(denominator)
    floor = torch.where(minimum > 0, minimum, 1.0)
    return (numerator / torch.where(denominator > minimum, denominator, floor)).to(q.dtype)


def _one_query(q: Tensor, k: Tensor, v: Tensor, coefficients: Tensor) -> Tensor:
    """Decoding: nothing is gained by tiles, which would copy keys and values."""
    weights = torch.matmul(q, k.mT) * coefficients[:, None]  # [B, H, 1, Tk]
    total = weights.sum(-1, keepdim=True)
    return torch.matmul(weights, v) / torch.where(total > 0, total, 1.0)


def _dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_weights: Tensor,
    segment: Tensor | None,
    geometry: Geometry,
    algorithm: str | None,
    fft_dtype: torch.dtype | None,
) -> Tensor:
    at = [
        torch.arange(m, device=q.device) - torch.arange(n, device=q.device)[:, None] + n - 1
        for n, m in zip(geometry.queries, geometry.keys)
    ]
    if len(at) == 1:
        return dense(q, k, v, log_weights.exp()[:, at[0]], segment)
    weight = log_weights.exp()[:, at[0][:, None, :, None], at[1][None, :, None, :]]
    return dense(q, k, v, weight.flatten(3, 4).flatten(1, 2), segment)


_OPERATOR = Operator(_NAME, {"cpp": partial(_torch, backend="cpp"), "torch": _torch, "reference": _dense})


def _features(q: Tensor, k: Tensor, feature_map: str | FeatureMap | None) -> tuple[Tensor, Tensor]:
    """Features of queries and keys, [B, *space, H, M]."""
    if feature_map is None:
        return q, k
    function = resolve_feature_map(feature_map)
    of_queries: FeatureMap = getattr(function, "queries", function)
    found = []
    for x, apply in ((q, of_queries), (k, function)):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        found.append(torch.unflatten(apply(x.flatten(1, -3)), 1, x.shape[1:-2]))
    return found[0], found[1]


def _log_weights(relative_bias: Tensor, geometry: Geometry) -> Tensor:
    """b of every offset [H, *offsets], clipped to the table; -inf after the query when causal."""
    for dim, (queries, keys) in enumerate(zip(geometry.queries, geometry.keys), start=1):
        reach = relative_bias.shape[dim] // 2
        # query i stands at i + keys - queries, so that offsets run from 1 - keys to queries - 1
        offset = torch.arange(queries + keys - 1, device=relative_bias.device) - (keys - 1)
        relative_bias = relative_bias.index_select(dim, offset.clamp(-reach, reach) + reach)
        if geometry.is_causal:
            relative_bias = relative_bias.masked_fill(offset > 0, float("-inf"))
    return relative_bias


def _check(
    q: Tensor,
    k: Tensor,
    relative_bias: Tensor,
    is_causal: bool,
    key_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    algorithm: str | None,
) -> None:
    dims = q.ndim - 3
    fits = relative_bias.ndim == dims + 1 and relative_bias.shape[0] == q.shape[-2]
    if not fits or any(size % 2 == 0 for size in relative_bias.shape[1:]):
        raise ShapeError(
            f"{_NAME}: relative_bias must be [H, 2 P - 1 for each of {dims} axes] with H = {q.shape[-2]}, "
            f"got {list(relative_bias.shape)}."
        )
    shorter = dims == 1 and q.shape[1] < k.shape[1]
    if q.shape[1:-2] != k.shape[1:-2] and not shorter:
        raise ShapeError(
            f"{_NAME}: the tokens of q {list(q.shape)} must be those of k {list(k.shape)}, or the last of them in a "
            "sequence. Tensors laid out as [B, H, T, D]? Call .transpose(1, 2) first."
        )
    if is_causal and dims != 1:
        raise ValueError(f"{_NAME}: is_causal needs one axis, got {dims}; there is no order on a grid.")
    if algorithm is not None and algorithm not in ALGORITHMS:
        raise ValueError(f"{_NAME}: algorithm must be None or one of {', '.join(ALGORITHMS)}, got {algorithm!r}.")
    if key_mask is not None and (key_mask.dtype != torch.bool or key_mask.shape != k.shape[:-2]):
        raise ShapeError(
            f"{_NAME}: key_mask must be bool {list(k.shape[:-2])} (True = attend), got {list(key_mask.shape)} "
            f"{key_mask.dtype}."
        )
    if cu_seqlens is not None:
        check_cu_seqlens(_NAME, cu_seqlens, q)
        if dims != 1 or shorter or key_mask is not None:
            raise ValueError(f"{_NAME}: cu_seqlens packs whole sequences: one axis, as many queries as keys, no mask.")
