"""Tables of measurements: shown in the terminal, or kept as Markdown with the machine they came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median

from attensor.bench.contest import OURS, SAME, Check, Peer, Row
from attensor.bench.layout import Table
from attensor.bench.machine import version_of

__all__ = ["check_table", "digits", "measure_tables", "summary_table"]

NOTHING = "-"
MODES = {"forward": "forward", "training": "forward + backward", "decode": "decode"}
HOW_TO_READ = (
    "'time' is the median of a call, 'against ours' that over the time of ours in the same rounds, 'over rounds' its "
    "lowest and highest value, "
    "'growth' the power of the length in the time since the length before, 'of matrix rate' the rate of useful "
    "operations over that of a square matrix product in the same rounds; the backward pass counts twice the forward "
    "pass, and what is recomputed does not count. 'peak MiB' is the memory of a call beyond its inputs; it holds "
    "outputs and gradients."
)


def digits(value: float) -> str:
    """Three digits that count, and never fewer than those before the point: `0.0123`, `1.23`, `123`, `1,234`."""
    places = 2 - math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return f"{value:,.{min(max(places, 0), 6)}f}"


def _growth(row: Row, rows: Sequence[Row]) -> str:
    *rest, length = row.problem.size
    alike = (other for other in rows if other.peer == row.peer and [*other.problem.size[:-1]] == rest)
    shorter = (other for other in alike if other.problem.size[-1] < length)
    before = max(shorter, key=lambda other: other.problem.size[-1], default=row)
    if before is row or not before.products or not row.products:
        return NOTHING
    return f"{math.log(row.products / before.products) / math.log(length / before.problem.size[-1]):.2f}"


def _name(row: Row, rows: Sequence[Row]) -> str:
    other = row.computes.split()[0]
    return row.peer if row.computes == SAME or row.peer.startswith(other) else f"{row.peer} ({other})"


def _rounds(row: Row, rows: Sequence[Row]) -> str:
    return " to ".join(map(digits, row.rounds)) if row.rounds and row.peer != OURS else NOTHING


def _cell(value: float | None, form: Callable[[float], str]) -> str:
    return form(value) if value else NOTHING


def _unit(rows: Sequence[Row]) -> tuple[str, float]:
    """Name and factor of the unit in which the times of one table are shown: that of the median."""
    typical = median([row.seconds for row in rows if row.seconds] or [1e-3])
    return next(((unit, factor) for unit, factor in _UNITS if factor * typical >= 1), _UNITS[-1])


def _time(row: Row, rows: Sequence[Row]) -> str:
    return _cell(row.seconds, lambda seconds: digits(_unit(rows)[1] * seconds))


def _rate(row: Row, count: int) -> str:
    rate = count / (row.seconds or math.inf)
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rate >= factor:
            return f"{digits(rate / factor)}{unit}"
    return _cell(rate, digits)


_UNITS = (("s", 1.0), ("ms", 1e3), ("us", 1e6))
# Heading -> the cell of a row, which may look at the other rows of its table; a column of nothing is not shown.
_COLUMNS: dict[str, Callable[[Row, Sequence[Row]], str]] = {
    "contestant": _name,
    "size": lambda row, rows: row.problem.label,
    "time": _time,
    "against ours": lambda row, rows: _cell(row.against_ours, lambda ratio: f"{digits(ratio)}x"),
    "over rounds": _rounds,
    "growth": _growth,
    "tokens/s": lambda row, rows: _rate(row, row.problem.tokens),
    "images/s": lambda row, rows: _rate(row, row.problem.images),
    "of matrix rate": lambda row, rows: _cell(row.of_matrix_rate, "{:.1%}".format),
    "peak MiB": lambda row, rows: NOTHING if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}",
    "of inputs": lambda row, rows: _cell(
        row.problem.input_bytes, lambda inputs: f"{(row.peak_bytes or 0) / inputs:.1f}x"
    ),
    "state MiB": lambda row, rows: _cell(row.state_bytes / 2**20, "{:.1f}".format),
}
# what a narrow terminal does without, the first of them first
_SPARE = ("of inputs", "over rounds", "of matrix rate", "growth", "tokens/s", "images/s", "peak MiB")


def check_table(checks: Sequence[Check], peers: Sequence[Peer], note: str) -> Table:
    """Who computes what, and how far from each other they are."""
    table = Table(
        "contestants",
        ("name", "largest error", "computes", "version", "variants"),
        note="Largest error on a small problem over the largest value, against ours; of ours and of other functions "
        f"against their references. {HOW_TO_READ} {note}",
        joined=(2, 3, 4),
    )
    packages = {peer.name: peer.packages for peer in peers}
    alike: dict[tuple[str, str, str], list[Check]] = {}
    for check in checks:
        alike.setdefault((check.peer, check.computes, check.reason), []).append(check)
    for (peer, computes, reason), group in alike.items():
        error = "left out" if reason else f"{max(check.max_error or 0.0 for check in group):.0e}"
        found = {package: version_of(package) for package in packages[peer]}
        versions = ", ".join(f"{package} {version}" for package, version in found.items() if version)
        kinds = ", ".join(check.kind for check in group)
        table.rows.append((peer, error, reason or computes, versions or NOTHING, kinds))
    return table


def measure_tables(rows: Iterable[Row]) -> Iterator[Table]:
    """One table for each pass and title, the passes in order; below it who was left out, where and why."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: list(MODES).index(row.mode)):
        groups.setdefault((row.mode, row.problem.title), []).append(row)
    for (mode, title), group in groups.items():
        cells = [[cell(row, group) for cell in _COLUMNS.values()] for row in group if not row.skipped]
        shown = [i for i in range(len(_COLUMNS)) if i < 2 or any(row[i] != NOTHING for row in cells)]
        unit, _ = _unit(group)
        headings = [f"time, {unit}" if heading == "time" else heading for heading in _COLUMNS]
        table = Table(
            f"{MODES[mode]}, {title}",
            [headings[i] for i in shown],
            note=_left_out(group),
            groups=(1,),
            spare=_SPARE,
        )
        table.rows += [[row[i] for i in shown] for row in cells]
        yield table


def summary_table(rows: Iterable[Row]) -> Iterator[Table]:
    """Time of every peer over that of ours, by length, at the largest problem of that length; none without peers."""
    found = [row for row in rows if row.mode != "decode" and row.peer != OURS and row.against_ours is not None]
    lengths = sorted({row.problem.size[-1] for row in found})
    table = Table(
        "time of a peer over that of ours (above 1: ours is faster)",
        ("peer", "variant", "mode", *map(str, lengths)),
        note="By length, each at the largest size where it was timed; '-': left out, the other tables say why.",
        groups=(1, 2),
    )
    ratios: dict[tuple[str, str, str], dict[int, str]] = {}
    order = list(dict.fromkeys(row.peer for row in found))
    for row in sorted(found, key=lambda row: (order.index(row.peer), row.problem.size)):
        place = ratios.setdefault((row.peer, row.problem.series, MODES[row.mode]), {})
        place[row.problem.size[-1]] = f"{digits(row.against_ours or math.nan)}x"
    table.rows += [(*key, *(ratio.get(length, NOTHING) for length in lengths)) for key, ratio in ratios.items()]
    if table.rows:
        yield table


def _left_out(rows: Sequence[Row]) -> str:
    places: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.skipped:
            places.setdefault((row.peer, row.skipped), []).append(row.problem.label)
    skipped = [f"{name} ({', '.join(found)}): {reason}" for (name, reason), found in places.items()]
    return f"Left out: {'; '.join(skipped)}." if skipped else ""
