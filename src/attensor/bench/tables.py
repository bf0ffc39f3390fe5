"""Tables of measurements: shown in the terminal, or kept as Markdown with the machine they came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.table import Table as RichTable

from attensor.bench.contest import OURS, SAME, Check, Peer, Row
from attensor.bench.machine import version_of

__all__ = ["Table", "check_table", "measure_tables", "summary_table"]

NOTHING = "-"
MODES = {"forward": "forward", "training": "forward + backward", "decode": "decode"}
HOW_TO_READ = (
    "'against ours' is the time over that of ours in the same rounds, 'over rounds' its lowest and highest value, "
    "'growth' the power of the length in the time since the length before, 'of matrix rate' the rate of useful "
    "operations over that of a square matrix product in the same rounds; the backward pass counts twice the forward "
    "pass, and what is recomputed does not count. 'peak MiB' is the memory of a call beyond its inputs; it holds "
    "outputs and gradients."
)


@dataclass
class Table:
    """Rows of text under a title.

    Attributes:
        title: what was measured.
        columns: heading of each column; the first is aligned left, the others right.
        rows: cells, already formatted.
        note: what a reader must know to read the figures.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    note: str = ""

    def rich(self) -> RichTable:
        """The table for a terminal."""
        table = RichTable(title=self.title, title_justify="left", caption=self.note, caption_justify="left")
        for i, column in enumerate(self.columns):
            # figures without a name are worth less than narrow columns
            table.add_column(column, justify="right" if i else "left", no_wrap=not i)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """The table as Markdown under a heading of the second level."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (self.columns, rule, *self.rows)]
        return f"## {self.title}\n\n" + "\n".join(lines) + (f"\n\n{self.note}\n" if self.note else "\n")


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
    return "{:.2f} to {:.2f}".format(*row.rounds) if row.rounds and row.peer != OURS else NOTHING


def _cell(value: float | None, form: Callable[[float], str]) -> str:
    return form(value) if value else NOTHING


# Heading -> the cell of a row, which may look at the other rows of its table; a column of nothing is not shown.
_COLUMNS: dict[str, Callable[[Row, Sequence[Row]], str]] = {
    "contestant": _name,
    "size": lambda row, rows: row.problem.label,
    "against ours": lambda row, rows: _cell(row.against_ours, "{:.2f}x".format),
    "over rounds": _rounds,
    "growth": _growth,
    "ms": lambda row, rows: f"{1e3 * (row.seconds or 0):.1f}" if row.mode == "decode" else NOTHING,
    "tokens/s": lambda row, rows: _cell(row.problem.tokens / (row.seconds or math.inf), "{:,.0f}".format),
    "of matrix rate": lambda row, rows: _cell(row.of_matrix_rate, "{:.1%}".format),
    "peak MiB": lambda row, rows: NOTHING if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}",
    "of inputs": lambda row, rows: _cell(
        row.problem.input_bytes, lambda inputs: f"{(row.peak_bytes or 0) / inputs:.1f}x"
    ),
    "state MiB": lambda row, rows: _cell(row.state_bytes / 2**20, "{:.1f}".format),
}


def check_table(checks: Sequence[Check], peers: Sequence[Peer], note: str) -> Table:
    """Who computes what, and how far from each other they are."""
    table = Table(
        "contestants",
        ("name", "version", "variants", "computes", "largest error"),
        note="Largest error on a small problem over the largest value, against ours; of ours and of other functions "
        f"against their references. {HOW_TO_READ} {note}",
    )
    packages = {peer.name: peer.packages for peer in peers}
    alike: dict[tuple[str, str, str], list[Check]] = {}
    for check in checks:
        alike.setdefault((check.peer, check.computes, check.reason), []).append(check)
    for (peer, computes, reason), group in alike.items():
        error = f"left out: {reason}" if reason else f"{max(check.max_error or 0.0 for check in group):.0e}"
        found = {package: version_of(package) for package in packages[peer]}
        versions = ", ".join(f"{package} {version}" for package, version in found.items() if version)
        table.rows.append((peer, versions or NOTHING, ", ".join(check.kind for check in group), computes, error))
    return table


def measure_tables(rows: Iterable[Row]) -> Iterator[Table]:
    """One table for each pass and title, the passes in order; below it who was left out, where and why."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: list(MODES).index(row.mode)):
        groups.setdefault((row.mode, row.problem.title), []).append(row)
    for (mode, title), group in groups.items():
        cells = [[cell(row, group) for cell in _COLUMNS.values()] for row in group if not row.skipped]
        shown = [i for i in range(len(_COLUMNS)) if i < 2 or any(row[i] != NOTHING for row in cells)]
        table = Table(f"{MODES[mode]}, {title}", [list(_COLUMNS)[i] for i in shown], note=_left_out(group))
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
    )
    ratios: dict[tuple[str, str, str], dict[int, str]] = {}
    order = list(dict.fromkeys(row.peer for row in found))
    for row in sorted(found, key=lambda row: (order.index(row.peer), row.problem.size)):
        place = ratios.setdefault((row.peer, row.problem.series, MODES[row.mode]), {})
        place[row.problem.size[-1]] = f"{row.against_ours:.2f}x"
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
