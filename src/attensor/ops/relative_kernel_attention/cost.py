"""What either algorithm costs: which one is faster, and the formula of the catalogue."""

from __future__ import annotations

import math

from attensor.ops.relative_kernel_attention.operands import Geometry
from attensor.ops.relative_kernel_attention.tiles import products_of_tiles
from attensor.ops.toeplitz import fast_fft_size

__all__ = ["faster_algorithm", "keys_per_query", "transform_flops"]

# A floating-point operation of a Fourier transform takes as long as this many in the tiles of a back-end. Measured on a
# CPU thread in float32, with everything around either: M = V = 32 and 64, n = 1k to 16k, causal and not.
_TRANSFORM_COST = {"torch": 2.2, "cpp": 5.5}


def faster_algorithm(geometry: Geometry, num_features: int, value_dim: int, backend: str = "torch") -> str:
    """`"tiles"` for short sequences and short reaches, `"fft"` beyond the crossover that was measured on a CPU."""
    products = products_of_tiles(geometry, num_features, value_dim)
    transforms = _TRANSFORM_COST[backend] * transform_flops(geometry, num_features, value_dim)
    return "fft" if transforms < 2 * products else "tiles"


def keys_per_query(
    space: tuple[int, ...], num_features: int, value_dim: int, *, is_causal: bool, reach: int | None = None
) -> int:
    """Keys that a query sees, on average, far ones as the sums they come in.

    Where Fourier transforms take the place of the products, the number of keys whose products would have as many
    floating-point operations as the transforms.

    Args:
        space: sizes of the sequence or grid.
        num_features: M.
        value_dim: value columns, the denominator's included.
        is_causal: whether keys after a query are left out.
        reach: offsets from which on the bias is constant; None on a grid.
    """
    geometry = Geometry(space, space, is_causal, reach)
    cells = math.prod(space)
    seen = (cells + 1) / 2 if is_causal else cells
    products: float = min(
        seen * cells * (num_features + value_dim), products_of_tiles(geometry, num_features, value_dim)
    )
    if faster_algorithm(geometry, num_features, value_dim) == "fft":
        products = transform_flops(geometry, num_features, value_dim) / 2
    return round(products / (cells * (num_features + value_dim)))


def transform_flops(geometry: Geometry, num_features: int, value_dim: int) -> float:
    """Floating-point operations of the Fourier transforms of one head, forward."""
    length = math.prod([fast_fft_size(n) for n in geometry.offsets])
    return 2 * 2.5 * length * math.log2(max(length, 2)) * num_features * value_dim
