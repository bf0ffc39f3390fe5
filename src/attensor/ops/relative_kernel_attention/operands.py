"""The tensors of one kernel sum, and which of two exact algorithms is faster for their sizes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from attensor.ops.toeplitz import fast_fft_size

__all__ = ["ALGORITHMS", "Geometry", "Operands", "faster_algorithm", "transform_flops"]

ALGORITHMS = ("tiles", "fft")

# A floating-point operation of a Fourier transform takes as long as this many in a matrix product. Measured on a CPU
# thread in float32, with everything around either: B H = 1 to 8, M = V = 32 and 64, n = 1k to 16k.
_TRANSFORM_COST = 5.0


class Geometry(NamedTuple):
    """Sizes of the axes: one of a sequence, two of a grid.

    Queries are the last ones: query i of an axis stands at i + keys - queries.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    is_causal: bool

    @property
    def offsets(self) -> tuple[int, ...]:
        """Number of offsets of each axis; key j and query i have offset number j - i + queries - 1."""
        return tuple(n + m - 1 for n, m in zip(self.queries, self.keys))


class Operands(NamedTuple):
    """y_i = phi_q_i . sum_j c_{j - i} phi_k_j v_j^T for every batch entry and head, tokens in one row."""

    q: Tensor  # features [B, H, Tq, M]
    k: Tensor  # features [B, H, Tk, M]
    v: Tensor  # [B, H, Tk, V]
    coefficients: Tensor  # [H, *offsets], zero after the query when causal
    segment: Tensor | None  # [T]: a query sees the keys of its own number only


def transform_flops(geometry: Geometry, num_features: int, value_dim: int) -> float:
    """Floating-point operations of the Fourier transforms of one head, forward."""
    length = math.prod(fast_fft_size(n) for n in geometry.offsets)
    return 2 * 2.5 * length * math.log2(max(length, 2)) * num_features * value_dim


def faster_algorithm(geometry: Geometry, num_features: int, value_dim: int, device: torch.device) -> str:
    """`"tiles"` for short sequences, `"fft"` beyond the crossover that was measured on a CPU."""
    pairs = math.prod(geometry.queries) * math.prod(geometry.keys) * (0.5 if geometry.is_causal else 1.0)
    products = 2 * pairs * (num_features + value_dim)
    return "fft" if _TRANSFORM_COST * transform_flops(geometry, num_features, value_dim) < products else "tiles"
