"""Corrupted calls of everything public: `make fuzz`, or `python -m tests.fuzz.refusals --calls 10000 --seed 0`.

A legal call is drawn from a table that was written from the documentation, one or two of its arguments are changed as
users change them, and rules written from the documentation say whether it is still legal. What is not must end in an
error that names the operator, the argument and the repair; what is must give the reference's numbers. Calls run in
processes of their own: a crash or a hang is an outcome like others. Exit code 1 if there is any fault.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.fuzz.workers import CRASHED, HANGS, in_processes

__all__ = ["main"]

SHORT = {"clear error": "clear", "accepted": "legal", "Python's TypeError": "Python", "raw error": "raw"}
SHORT |= {"silent acceptance": "silent", "wrong numbers": "wrong", "refusal of what is legal": "refused"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.refusals", description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000, help="how many (default 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the calls (default 0)")
    parser.add_argument("--from", type=int, default=0, dest="start", help="number of the first call (default 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for one call (default 20)")
    parser.add_argument("--examples", type=int, default=3, help="shown of each fault (default 3)")
    parser.add_argument("--save", type=Path, help="write all outcomes there, as JSON")
    options = parser.parse_args(arguments)
    console, found = Console(width=None if sys.stdout.isatty() else 130), []
    try:
        for outcome in track(_outcomes(options), "calls", total=options.calls, console=Console(stderr=True)):
            found.append(outcome)
    except KeyboardInterrupt:
        console.print(f"\nInterrupted after {len(found)} of {options.calls} calls.")
    # here, because processes that only wait need no torch
    from tests.fuzz.judge import FAULTS

    show(console, found, FAULTS, options.examples)
    if options.save:
        options.save.write_text(json.dumps([outcome._asdict() for outcome in found], indent=1) + "\n")
    return int(any(outcome.kind in FAULTS for outcome in found))


def _outcomes(options: argparse.Namespace) -> Iterator[Any]:
    pieces = range(options.start, options.start + options.calls)
    work = in_processes("tests.fuzz.judge:judge", (options.seed,), pieces, count=options.workers, limit=options.limit)
    from tests.fuzz.judge import Outcome, call_of

    for piece, answer in work:
        if isinstance(answer, Outcome):
            yield answer
        else:
            call = call_of(options.seed, piece)
            kind = {CRASHED: "crash", HANGS: "hang"}[answer[0]]
            changes = ", ".join(f"{name}: {how}" for name, how in call.corrupted.items())
            yield Outcome(call.title, kind, str(call), f"{answer[0]}: {answer[1]}", changes)


def show(console: Console, found: Sequence[Any], faults: Sequence[str], examples: int) -> None:
    """The table by function and outcome, and the first examples of each kind of fault."""
    from tests.fuzz.judge import OUTCOMES

    counts = Counter((outcome.title, outcome.kind) for outcome in found)
    table = Table(title=f"{len(found)} calls")
    for place, heading in enumerate(["function", *(SHORT.get(kind, kind) for kind in OUTCOMES)]):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for title in sorted({outcome.title for outcome in found}):
        table.add_row(title, *(_cell(counts[title, kind], kind in faults) for kind in OUTCOMES))
    totals = Counter(outcome.kind for outcome in found)
    table.add_section()
    table.add_row("together", *(_cell(totals[kind], kind in faults) for kind in OUTCOMES))
    console.print(table)
    shown: Counter[tuple[str, str]] = Counter()
    for outcome in sorted(found, key=lambda one: (faults.index(one.kind) if one.kind in faults else 99, one.title)):
        if outcome.kind not in faults or shown[outcome.title, outcome.kind] >= examples:
            continue
        shown[outcome.title, outcome.kind] += 1
        console.print(f"{outcome.kind}: {outcome.title} ({outcome.corrupted})", style="bold", markup=False)
        console.print(f"    {outcome.what}", markup=False, highlight=False)
        console.print(f"    {outcome.line}", markup=False, highlight=False, soft_wrap=True)


def _cell(count: int, is_fault: bool) -> str:
    return "" if not count else f"[red]{count}[/]" if is_fault else str(count)


if __name__ == "__main__":
    raise SystemExit(main())
