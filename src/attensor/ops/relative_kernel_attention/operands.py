"""The tensors of one kernel sum and the sizes of their axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attensor.ops.feature_maps import FeatureMap

__all__ = ["ALGORITHMS", "Geometry", "Inputs", "Operands", "Problem"]

ALGORITHMS = ("tiles", "fft", "fft-float64")


@dataclass(frozen=True)
class Problem:
    """Arguments of `relative_kernel_attention`, by the same names."""

    q: Tensor
    k: Tensor
    v: Tensor
    relative_bias: Tensor
    feature_map: str | FeatureMap | None
    is_causal: bool
    key_mask: Tensor | None
    cu_seqlens: Tensor | None
    max_seqlen: int | None
    algorithm: str | None


class Geometry(NamedTuple):
    """Sizes of the axes: one of a sequence, two of a grid.

    Queries are the last ones: query i of an axis stands at i + keys - queries.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    is_causal: bool
    # of a sequence: all offsets of `reach` and more share a coefficient, so do -reach and less
    reach: int | None = None

    @property
    def offsets(self) -> tuple[int, ...]:
        """Number of offsets of each axis; key j and query i have offset number j - i + queries - 1."""
        return tuple(max(n + m - 1, 0) for n, m in zip(self.queries, self.keys))


class Inputs(NamedTuple):
    """z_i = sum_j w_ij v_j / sum_j w_ij with w_ij = phi_q_i . phi_k_j exp(b_{j - i}), tokens in one row."""

    q: Tensor  # features [B, H, Tq, M]
    k: Tensor  # features [B, H, Tk, M]
    v: Tensor  # [B, H, Tk, V]
    biases: Tensor  # b [H, *offsets], -inf after the query when causal
    segment: Tensor | None  # [T]: a query sees the keys of its own number only


class Operands(NamedTuple):
    """y_i = phi_q_i . sum_j c_{j - i} phi_k_j v_j^T for every batch entry and head, tokens in one row."""

    q: Tensor  # features [B, H, Tq, M]
    k: Tensor  # features [B, H, Tk, M]
    v: Tensor  # [B, H, Tk, V]
    coefficients: Tensor  # [H, *offsets], zero after the query when causal
    segment: Tensor | None  # [T]: a query sees the keys of its own number only

    def with_ones(self) -> Operands:
        """With a column of ones behind v, whose sum is the denominator."""
        return self._replace(v=torch.cat([self.v, torch.ones_like(self.v[..., :1])], -1))
