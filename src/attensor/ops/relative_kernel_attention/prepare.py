"""What comes before the sum: features, weights of offsets, heads first, packed sequences as rows of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.ops import _packing
from attensor.ops._precision import working_dtype
from attensor.ops.feature_maps import FeatureMap, check_mapped, resolve_feature_map
from attensor.ops.relative_kernel_attention.operands import Geometry, Problem

__all__ = ["Rows", "features", "heads_first", "offset_biases"]


def features(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Features of queries and keys [B, *space, H, M], and v, 0 where a key is masked; in one working precision."""
    q, k, v = problem.q, problem.k, problem.v
    hidden = None if problem.key_mask is None else ~problem.key_mask[..., None, None]
    if hidden is not None:
        k, v = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
    if problem.feature_map is not None:
        function = resolve_feature_map(problem.feature_map, "relative_kernel_attention")
        of_queries: FeatureMap = getattr(function, "queries", function)
        q, k = (
            torch.unflatten(_mapped(apply, x.to(working_dtype(x)).flatten(1, -3)), 1, x.shape[1:-2])
            for x, apply in ((q, of_queries), (k, function))
        )
    dtype = working_dtype(q, k)
    if hidden is not None:
        k = k.masked_fill(hidden, 0.0)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def _mapped(apply: FeatureMap, x: Tensor) -> Tensor:
    found = apply(x)
    check_mapped("relative_kernel_attention", "feature_map", found, x)
    return found


def heads_first(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, H, T, D] of [B, *space, H or Hkv, D]; key/value heads are repeated for their group."""
    groups = q.shape[-2] // k.shape[-2]
    first, *grouped = (t.flatten(1, -3).transpose(1, 2) for t in (q, k, v))
    second, third = (t.repeat_interleave(groups, 1) if groups > 1 else t for t in grouped)
    return first, second, third


def offset_biases(relative_bias: Tensor, geometry: Geometry) -> Tensor:
    """b of every offset [H, *offsets], clipped to the table; -inf after the query when causal."""
    for dim, (queries, keys) in enumerate(zip(geometry.queries, geometry.keys), start=1):
        reach = relative_bias.shape[dim] // 2
        # query i stands at i + keys - queries, so that offsets run from 1 - keys to queries - 1
        offset = torch.arange(max(queries + keys - 1, 0), device=relative_bias.device) - (keys - 1)
        relative_bias = relative_bias.index_select(dim, offset.clamp(-reach, reach) + reach)
        if geometry.is_causal:
            relative_bias = relative_bias.masked_fill(offset > 0, float("-inf"))
    return relative_bias


class Rows:
    """Conversions between packed tokens and a batch.

    Args:
        cu_seqlens: [N + 1], bounds of the sequences.
        max_seqlen: S, at least the longest.
        tokens: T of all sequences together.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int, tokens: int) -> None:
        starts = cu_seqlens.long()
        slot = torch.arange(max_seqlen, device=starts.device)
        self.shape = (starts.shape[0] - 1, max_seqlen)
        self.filled = slot < starts.diff()[:, None]  # [N, S]
        self._token = (starts[:-1, None] + slot).clamp(max=max(tokens - 1, 0)).flatten()
        row, place = _packing.sequence_index(starts, tokens), _packing.positions(starts, tokens)
        self._slot = (row * max_seqlen + place).clamp(0, max(self.shape[0] * max_seqlen - 1, 0))  # [T]

    def unpack(self, x: Tensor) -> Tensor:
        """[1, T, ..] as [N, S, ..], zeros behind the end of a sequence."""
        rows = x[0].index_select(0, self._token).view(*self.shape, *x.shape[2:])
        return rows.masked_fill(~self.filled[(..., *[None] * (x.ndim - 2))], 0.0)

    def pack(self, x: Tensor) -> Tensor:
        """[N, S, ..] as [1, T, ..]."""
        return x.flatten(0, 1).index_select(0, self._slot)[None]
