"""The frame of every `attensor bench`: check, measure, show, keep, also when it is cut short."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from attensor.bench.contest import OURS, Cell, Contest, Peer, Problem, Row
from attensor.bench.machine import describe, torch_threads
from attensor.bench.progress import progress
from attensor.bench.tables import check_table, measure_tables, publish, summary_table
from attensor.errors import BackendError

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
    """

    peers: Sequence[Peer]
    small: Sequence[Problem]
    cells: Sequence[Cell]
    note: str = ""
    suffix: str = ""


def hold(name: str, options: Any, console: Console | None = None, *, folder: Path = Path("benchmarks/results")) -> int:
    """Measure, print and optionally save; 1 when ours failed or differs from its reference, otherwise 0.

    Args:
        name: of the module in `contestants` whose `bench(options)` says what is measured.
        options: a dataclass with `rounds` and `save`; `budget`, `threads`, `device` and `quick` if it has them.
        console: where progress and tables are shown.
        folder: for `options.save`.
    Raises:
        ValueError: options that make no sense.
        BackendError: `--device cuda` without a GPU.
        KeyboardInterrupt: again, after what was measured until then has been printed and saved.
    """
    _refuse_nonsense(name, options)
    console, device = console or Console(), getattr(options, "device", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"bench {name}: PyTorch sees no GPU here; use --device cpu.")
    bench: Bench = importlib.import_module(f"attensor.bench.contestants.{name}").bench(options)
    with torch_threads(getattr(options, "threads", 1)), progress(console, len(bench.cells)) as tick:
        machine = _machine(bench.peers, device)
        contest = Contest(bench.peers, rounds=options.rounds, budget=getattr(options, "budget", math.inf), tick=tick)
        rows, interruption = _run(contest, bench)
    checks = contest.checks
    publish(
        name + "-quick" * getattr(options, "quick", False) + "-partial" * bool(interruption) + bench.suffix,
        [check_table(checks, bench.peers, bench.note), *measure_tables(rows), *summary_table(rows)],
        machine | {"complete": "no, interrupted" if interruption else "yes"},
        folder=folder if options.save else None,
        console=console,
        device=device,
        data={
            "options": asdict(options),
            "checks": [asdict(check) for check in checks],
            "rows": [asdict(row) | {"kind": row.problem.kind} for row in rows],
        },
    )
    if interruption:
        raise interruption[0]
    failed = [check.reason for check in checks if check.peer == OURS]
    return int(any([*failed, *(row.skipped for row in rows if row.peer == OURS)]))


def _run(contest: Contest, bench: Bench) -> tuple[list[Row], list[KeyboardInterrupt]]:
    """What was measured until the end, or until Ctrl-C, which is then the only one in the second list."""
    rows: list[Row] = []
    try:
        contest.check(bench.small)
        for found in contest.measure(bench.cells):
            rows += found
    except KeyboardInterrupt as error:
        return rows, [error]
    return rows, []


def _refuse_nonsense(name: str, options: Any) -> None:
    """Nothing chosen, counts below 1, and a budget that is not positive."""
    for option in fields(options):
        given = getattr(options, option.name)
        if given == ():
            raise ValueError(f"bench {name}: --{option.name.replace('_', '-')}: nothing chosen.")
        least = min(_numbers(given), default=1)
        if not (least > 0 if option.name == "budget" else least >= 1):
            floor = "above 0" if option.name == "budget" else "at least 1"
            raise ValueError(f"bench {name}: {option.name} must be {floor}, got {least:g}.")


def _numbers(given: Any) -> list[float]:
    if isinstance(given, tuple):
        return [number for part in given for number in _numbers(part)]
    return [given] if isinstance(given, int | float) and not isinstance(given, bool) else []


def _machine(peers: Sequence[Peer], device: str) -> dict[str, str]:
    """The header: with the versions of what the peers need, those in every header left out."""
    named = dict.fromkeys(package for peer in peers for package in peer.packages)
    machine = describe(*(package for package in named if package not in ("attensor", "torch")))
    return machine | ({"device": torch.cuda.get_device_name()} if device == "cuda" else {})
