"""The figures of `attensor bench relative` as tables: one for each pass, sizes and order, and where ours wins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from attensor.bench.linear.options import MODES
from attensor.bench.relative_kernel.options import Mode
from attensor.bench.relative_kernel.problem import (
    DENSE_BYTES,
    OURS,
    SOFTMAX,
    SOFTMAX_TRAINED,
    Sizes,
    useful_flops,
)
from attensor.bench.table import Table

__all__ = ["Row", "measure_tables", "summary_table"]

NOTHING = "-"
PRODUCT_FLOPS = 2.0 * 1024**3
HOW_TO_READ = (
    "'softmax over it': time of softmax attention over that of the contestant in the same rounds; above 1 the "
    "contestant is faster. Softmax attention gets the same bias as a float mask [1, H, n, n] and queries and keys as "
    "wide as the values; ours gets features that are not negative. Neither making the mask nor making the features "
    "is in the time. Forward + backward: ours gives the gradients of q, k, v and the bias [H, 2 n - 1]; "
    f"'{SOFTMAX}' gives those of q, k, v alone, because PyTorch's fused kernel has none for a mask; "
    f"'{SOFTMAX_TRAINED}' gives that of the mask too, without the fused kernel. The ratio is to the faster of the two. "
    f"They take no part where their n x n matrices (the mask; with the bias trained four) exceed "
    f"{DENSE_BYTES / 2**30:g} GiB. 'of matrix rate': useful operations a second over those of a 1024 x 1024 matrix "
    "product in the same rounds. Useful are 2 n^2 (features + width) a head, 4 n^2 width for softmax, half of it if "
    "causal, three times that with the backward pass; transforms are credited with the same, do fewer, and may pass "
    "100 %. 'growth': power of the length in the time since the length before. 'peak MiB': beyond the inputs, of "
    "which the mask is one."
)


@dataclass(frozen=True)
class Row:
    """One contestant at one size.

    Attributes:
        mode: `"forward"` or `"training"`.
        sizes: of the problem.
        contestant: its name.
        products: median time of a call over that of a matrix product in the same rounds; None when it was left out.
        peak_bytes: memory at the worst moment beyond what was held before.
        skipped: why it was left out.
    """

    mode: Mode
    sizes: Sizes
    contestant: str
    products: float | None = None
    peak_bytes: int | None = None
    skipped: str = ""


def measure_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """One table a pass, pair of sizes and order."""
    for (mode, *_), chosen in _problems(rows):
        sizes = chosen[0].sizes
        heads = f"{sizes.num_heads} head{'s' * (sizes.num_heads > 1)} of width {sizes.width}"
        yield Table(
            f"{MODES[mode]}, {sizes.order}: {sizes.num_features} features, {heads}",
            ("contestant", "n", "softmax over it", "of matrix rate", "growth", "peak MiB"),
            [_cells(row, chosen) for row in chosen if row.products is not None],
            note=_left_out(chosen),
        )


def summary_table(rows: Sequence[Row]) -> Table:
    """The length from which on ours is faster than softmax attention, for each pass, pair of sizes and order."""
    lengths = sorted({row.sizes.length for row in rows})
    table = Table(
        "ours against softmax attention with the same bias",
        ("features", "width", "order", "pass", "ours is faster from", *(f"n {length}" for length in lengths)),
        note=f"Faster at that length and at every longer one that was measured against softmax. {HOW_TO_READ}",
    )
    for (mode, *_), chosen in _problems(rows):
        found = {row.sizes.length: _ratio(row, chosen) for row in chosen if row.contestant == OURS}
        ratios = {length: ratio for length, ratio in found.items() if ratio is not None}
        cells = (f"{ratios[length]:.2f}x" if length in ratios else NOTHING for length in lengths)
        sizes = chosen[0].sizes
        table.rows.append(
            (str(sizes.num_features), str(sizes.width), sizes.order, MODES[mode], _faster_from(ratios), *cells)
        )
    return table


def _problems(rows: Sequence[Row]) -> Iterator[tuple[tuple[Mode, Sizes], list[Row]]]:
    """The rows of each table and what they share, the tables in order of appearance."""
    found: dict[tuple[Mode, Sizes], list[Row]] = {}
    for row in rows:
        found.setdefault((row.mode, row.sizes._replace(length=0)), []).append(row)
    yield from found.items()


def _left_out(rows: Sequence[Row]) -> str:
    lengths: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.skipped:
            lengths.setdefault((row.contestant, row.skipped), []).append(str(row.sizes.length))
    skipped = [f"{name} (n {', '.join(found)}): {reason}" for (name, reason), found in lengths.items()]
    return f"Left out: {'; '.join(skipped)}." if skipped else ""


def _faster_from(ratios: dict[int, float]) -> str:
    if not ratios:
        return NOTHING
    slower = max((length for length, ratio in ratios.items() if ratio <= 1), default=0)
    return str(min((length for length in ratios if length > slower), default="none of these"))


def _cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    products, ratio, growth = row.products or math.nan, _ratio(row, rows), _growth(row, rows)
    share = useful_flops(row.sizes, row.mode, row.contestant) / (products * PRODUCT_FLOPS)
    return (
        row.contestant,
        str(row.sizes.length),
        NOTHING if ratio is None else f"{ratio:.2f}x",
        f"{share:.1%}",
        NOTHING if growth is None else f"{growth:.2f}",
        f"{(row.peak_bytes or 0) / 2**20:.1f}",
    )


def _ratio(row: Row, rows: Sequence[Row]) -> float | None:
    """Time of softmax attention, of the faster one if there are two, over that of the row."""
    softmax = [
        other.products
        for other in rows
        if other.sizes == row.sizes and other.contestant in (SOFTMAX, SOFTMAX_TRAINED) and other.products
    ]
    return min(softmax) / row.products if softmax and row.products else None


def _growth(row: Row, rows: Sequence[Row]) -> float | None:
    """Exponent between the length before, if the contestant was timed there, and this one."""
    before = max((other.sizes.length for other in rows if other.sizes.length < row.sizes.length), default=None)
    for other in rows:
        if (other.contestant, other.sizes.length) == (row.contestant, before) and other.products and row.products:
            return math.log(row.products / other.products) / math.log(row.sizes.length / other.sizes.length)
    return None
