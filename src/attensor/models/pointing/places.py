r"""Codes of rows and columns whose likeness falls with their distance as a Gaussian: no training, no sines.

    cos(W_i, W_j) = exp(-(i - j)^2 / (2 sigma^2)),   |W_i| = norm

    W = norm G^(1/2) [1 0 .. 0] Q     with G the matrix of those cosines and Q orthogonal

The published tables are trained to this and reach it to 3e-5 and 5e-4; here it is exact. Source: arXiv:2407.13335.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.nn._shapes import check_range
from attensor.ops._checks import checked

__all__ = ["gaussian_positions"]


@checked
def gaussian_positions(n: int, sigma: float = 2.0, *, width: int = 86, norm: float = 1.0, seed: int = 0) -> Tensor:
    """Codes of n places in a row, float64 [n, width].

    Args:
        n: places, at most `width`.
        sigma: places at which the likeness has fallen to exp(-1/2).
        width: numbers of a code.
        norm: length of each code; the published tables have 5.895 (11 places) and 8.764 (14).
        seed: of the directions, which no distance depends on.
    Raises:
        ValueError: a number out of range.
    Cost: O(n^3 + width^3), once.
    """
    check_range("gaussian_positions", 1, width=width)
    check_range("gaussian_positions", 1, width + 1, n=n)
    check_range("gaussian_positions", above=0, sigma=sigma, norm=norm)
    place = torch.arange(n, dtype=torch.float64)
    alike = torch.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2))
    values, vectors = torch.linalg.eigh(alike)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    directions: Tensor = torch.linalg.qr(drawn).Q
    codes: Tensor = norm * root @ directions[:n]
    return codes
