"""`attensor compare`: plan, check the disk, train, measure, write the results; or go on where it was interrupted."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from attensor.compare.config import CompareConfig
from attensor.compare.ended import Ended
from attensor.compare.folder import is_calibrated, is_measured, is_trained, new_run, reopened
from attensor.compare.measuring import run_measurements
from attensor.compare.pace import decide, expected_seconds, paces
from attensor.compare.phases import Watch, run_phase
from attensor.compare.plan import Plan, make_plan
from attensor.compare.prepare import prepare
from attensor.compare.results import write_results
from attensor.compare.sizes import SIZES_FILE, compare_sizes
from attensor.compare.skills import check_skills, run_skills, skills_table
from attensor.files import locked, user_path
from attensor.lab import Display, Interruption

__all__ = ["compare", "compare_one"]

REPORT_FILE = "report.html"


def compare(config: CompareConfig, *, console: Console | None = None, command: str | None = None) -> Path:
    """Run a comparison to its end, or continue the one in `config.resume`.

    Args:
        config: what to compare; with `resume` only what does not contradict the run's own plan.
        console: where progress and results are shown.
        command: what was typed, for the results; that of the process when None.
    Returns:
        Folder of the run, with `results.json`, `report.html` and a folder a mechanism.
    Raises:
        DataError, ValueError, OSError: found before the training: data, options, disk.
        Ended: status 130 after Ctrl-C, 1 when no mechanism could be trained; what is there has been written.
    """
    console, out = console or Console(), _folder(config)
    command = command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    if len(config.sizes) > 1 or (config.resume is not None and (out / SIZES_FILE).is_file()):
        return compare_sizes(config, out, compare_one, console=console, command=command)
    return compare_one(config, console=console, command=command)


def compare_one(config: CompareConfig, *, console: Console, command: str, into: Path | None = None) -> Path:
    """`compare` at one size.

    Args:
        config, console, command: as of `compare`.
        into: the new folder; `out/<time>/` when None.
    """
    now, out = datetime.now(), _folder(config) if into is None else into.parent
    if config.resume is not None:
        plan = reopened(out, config)
    else:
        plan = make_plan(config, created=now.isoformat(timespec="seconds"), command=command)
        check_skills(plan)
    with Interruption().listening() as interruption:
        run = out if config.resume is not None else new_run(out, now, plan, name=into.name if into else None)
        with locked(run):
            _work(run, plan, interruption, console)
            results = write_results(run, plan)
            _conclude(results, run, console)
    if interruption.requested:
        console.print("Interrupted.", highlight=False, markup=False)
        raise Ended(run, is_interrupted=True)
    if all(row["status"] == "failed" for row in results["mechanisms"]):
        console.print(f"No mechanism could be trained; their logs are in {run}.", highlight=False, markup=False)
        raise Ended(run, is_interrupted=False)
    return run


def _folder(config: CompareConfig) -> Path:
    """That of the run to go on with, or that which gets a new one; relative where the user wrote it so."""
    text, option = (config.out, "--out") if config.resume is None else (config.resume, "--resume")
    path = user_path(text, option)
    return path if text.startswith("~") else Path(text)


def _work(run: Path, plan: Plan, interruption: Interruption, console: Console) -> None:
    for line in (_headline(run, plan), *plan.facts.get("notes", ())):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    names = [subject.name for subject in plan.subjects]
    with Display("all", names, console=console) as display:
        watch = Watch(plan, display)
        for subject in plan.subjects:
            if is_trained(run, subject, plan):
                watch.finished(subject.name, "measure" if is_measured(run, subject, plan) else "train")
            elif is_calibrated(run, subject):
                watch.finished(subject.name, "calibrate")

        display.line("counts and references")
        prepare(run, plan, interruption)
        keep = partial(write_results, run, plan)
        phase = partial(run_phase, run, plan, interruption=interruption, watch=watch, on_end=keep)
        phase("calibrate", [s for s in plan.subjects if not is_calibrated(run, s)], at_once=plan.jobs)
        known = paces(run, plan.subjects)
        if interruption.requested or not known:
            return
        steps = decide(run, plan).steps
        seconds = expected_seconds(plan, known, steps)
        watch.expect(seconds)
        display.line(f"{steps} steps a run")
        waiting = [s for s in plan.subjects if s.name in known and not is_trained(run, s, plan)]
        # the longest first, so that all processes end together
        phase("train", sorted(waiting, key=lambda s: -seconds[s.name]), at_once=plan.jobs)
        trained = [s for s in plan.subjects if is_trained(run, s, plan)]
        left = [s for s in trained if not is_measured(run, s, plan)]
        run_measurements(run, plan, left, interruption=interruption, watch=watch, on_end=keep)
        run_skills(run, plan, trained, interruption=interruption, display=display, on_end=keep)


def _headline(run: Path, plan: Plan) -> str:
    if plan.steps is not None:
        amount = f"{plan.steps} steps a run"
    else:
        amount = f"as many steps for each as fit into {plan.budget_seconds:.0f} s of training"
    return (
        f"{len(plan.subjects)} mechanisms on {plan.facts['name']}, size {plan.size}, {len(plan.seeds)} seeds, "
        f"{amount}, {plan.jobs} at a time on {plan.device}: {run}"
    )


def _conclude(results: dict[str, Any], run: Path, console: Console) -> None:
    from attensor.report import quality_table, write_report
    from attensor.report.document import announce_report

    # first what stays: a terminal can fail; and what is known is shown though the disk is full
    try:
        with console.capture() as announced:
            announce_report(console, write_report, results, run / REPORT_FILE)
    finally:
        console.print(quality_table(results))
        if results["skills"] is not None:
            console.print(skills_table(results["skills"]))
        for sentence in results["answer"]:
            # a command can be copied from one line only
            console.print(f"- {sentence}", highlight=False, markup=False, soft_wrap="--resume" in sentence)
    console.print(announced.get(), end="", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Results: {run / 'results.json'}", highlight=False, markup=False, soft_wrap=True)
