"""The frame of every `attensor bench`: check, measure, show, keep, also when it is cut short."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from attensor.bench.contest import OURS, Cell, Contest, Peer, Problem, Row
from attensor.bench.layout import Table
from attensor.bench.machine import describe, torch_threads, version_of
from attensor.bench.tables import check_table, measure_tables, summary_table
from attensor.bench.timing import seconds_of
from attensor.errors import BackendError, MissingExtraError
from attensor.files import write_json, write_text
from attensor.lab.display import clock

if TYPE_CHECKING:
    from attensor.commands.bench import BenchOptions

__all__ = ["Bench", "hold"]


@dataclass(frozen=True)
class Bench:
    """A problem and its peers.

    Attributes:
        peers: who may take part.
        small: problems at which they must agree.
        cells: what is measured, the cheap ones first.
        note: how to read the figures.
        suffix: tells files of unusual sizes apart.
        findings: rows -> tables of what only this bench asks.
        seconds: times a call.
    """

    peers: Sequence[Peer]
    small: Sequence[Problem]
    cells: Sequence[Cell]
    note: str = ""
    suffix: str = ""
    findings: Callable[[Sequence[Row]], Iterable[Table]] = lambda rows: ()
    seconds: Callable[[Callable[[], Any]], float] = seconds_of


def hold(
    name: str, options: BenchOptions, console: Console | None = None, *, folder: Path = Path("benchmarks/results")
) -> int:
    """Measure, print and optionally save; 1 when ours failed or differs from its reference, otherwise 0.

    Args:
        name: of the module in `contestants` whose `bench(options)` says what is measured.
        options: of the command.
        console: where progress and tables are shown.
        folder: for `options.save`.
    Raises:
        ValueError: options that make no sense.
        BackendError: `--device cuda` without a GPU.
        MissingExtraError: a peer is asked for by name, and what it needs is not installed.
        KeyboardInterrupt: again, after what was measured until then has been printed and saved.
    """
    _refuse_nonsense(name, options)
    console = console or Console()
    bench: Bench = importlib.import_module(f"attensor.bench.contestants.{name}").bench(options)
    peers = _chosen(name, bench.peers, options.peers)
    with torch_threads(options.threads), _progress(console, len(bench.cells)) as tick:
        machine = describe(*(package for peer in peers for package in peer.packages), device=options.device)
        contest = Contest(peers, rounds=options.rounds, budget=options.budget, tick=tick, seconds=bench.seconds)
        rows, interruption = _run(contest, bench)
    machine["complete"] = "no, interrupted" if interruption else "yes"
    summaries = *summary_table(rows), *bench.findings(rows)
    tables = [check_table(contest.checks, peers, bench.note), *measure_tables(rows), *summaries]
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), highlight=False)
    for table in tables:
        console.print(table.rich(console.width))
    if options.save:
        name += "-quick" * options.quick + "-partial" * bool(interruption) + bench.suffix
        path = folder / f"{machine['date']}-{name}-{options.device}.md"
        checks, found = map(asdict, contest.checks), [asdict(row) | {"kind": row.problem.kind} for row in rows]
        data = {"machine": machine, "options": asdict(options), "checks": list(checks), "rows": found}
        _keep(path, f"attensor bench {name}", tables, data)
        console.print(f"written to {path}")
    if interruption:
        raise interruption
    return int(_has_failed(contest, rows))


def _has_failed(contest: Contest, rows: list[Row]) -> bool:
    failed = [check.reason for check in contest.checks if check.peer == OURS]
    return any([*failed, *(row.skipped for row in rows if row.peer == OURS)])


def _run(contest: Contest, bench: Bench) -> tuple[list[Row], KeyboardInterrupt | None]:
    """What was measured until the end, or until Ctrl-C."""
    rows: list[Row] = []
    try:
        contest.check(bench.small)
        for found in contest.measure(bench.cells):
            rows += found
    except KeyboardInterrupt as error:
        return rows, error
    return rows, None


def _keep(path: Path, title: str, tables: Sequence[Table], data: dict[str, Any]) -> None:
    """The tables as Markdown, and beside it the same figures for programs."""
    facts = "\n".join(f"- {key}: {value}" for key, value in data["machine"].items())
    body = "\n".join(table.markdown() for table in tables)
    elsewhere = "\n## GPU\n\nNot yet measured.\n" if data["options"]["device"] == "cpu" else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"# {title}\n\n{facts}\n\n{body}{elsewhere}")
    write_json(path.with_suffix(".json"), data)


def _chosen(name: str, peers: Sequence[Peer], chosen: Sequence[str]) -> list[Peer]:
    names = ["all", *dict.fromkeys(peer.name for peer in peers)]
    if unknown := [given for given in chosen if given not in names]:
        given = ", ".join(map(repr, unknown))
        raise ValueError(f"bench {name}: --peers: unknown {given}; choose from {', '.join(names)}.")
    for peer in (peer for peer in peers if peer.name in chosen):
        absent = [package for package in peer.packages if version_of(package) is None]
        if absent:
            line = f"--peers {peer.name}: {absent[0]} is not installed: pip install {' '.join(absent)}"
            raise MissingExtraError(f"bench {name}: {line}", name=absent[0])
    return [peer for peer in peers if "all" in chosen or peer.name in (OURS, *chosen)]


def _refuse_nonsense(name: str, options: BenchOptions) -> None:
    """A GPU that is not there, nothing chosen, counts below 1, and a budget that is not positive."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"bench {name}: PyTorch sees no GPU here; use --device cpu.")
    for option in fields(options):
        given = getattr(options, option.name)
        if given == ():
            raise ValueError(f"bench {name}: --{option.name.replace('_', '-')}: nothing chosen.")
        least = min(_numbers(given), default=1)
        if not (least > 0 if option.name == "budget" else least >= 1):
            floor = "above 0" if option.name == "budget" else "at least 1"
            raise ValueError(f"bench {name}: --{option.name.replace('_', '-')} must be {floor}, got {least:g}.")


def _numbers(given: Any) -> list[float]:
    if isinstance(given, tuple):
        return [number for part in given for number in _numbers(part)]
    return [given] if isinstance(given, int | float) and not isinstance(given, bool) else []


@contextmanager
def _progress(console: Console, cells: int) -> Iterator[Callable[[str, float], None]]:
    """A bar, gone after the block, that moves between calls: a thread of its own would take time from the measured.

    Where the output is no terminal, a line for each cell that is done.
    """
    if not console.is_terminal:
        yield _lines(console, cells)
        return
    columns = BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=cells)

        def tick(running: str, share: float) -> None:
            bar.update(task, description=running, advance=share, refresh=True)

        yield tick


def _lines(console: Console, cells: int) -> Callable[[str, float], None]:
    done, shown, started = 0.0, 0, time.monotonic()

    def tick(running: str, share: float) -> None:
        nonlocal done, shown
        done += share
        whole = math.floor(done + 1e-6)  # shares of a cell add up to 1 but for rounding
        if whole > shown:
            shown, gone = whole, time.monotonic() - started
            left = f", about {clock(gone / whole * (cells - whole))} left" if whole < cells else ""
            line = f"{whole:>{len(str(cells))}}/{cells}  {clock(gone)}{left}  {running}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    return tick
