"""The measurements of a run: one process for all mechanisms, started again without the one that ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attensor.compare.artefacts import AT_WORK, FAILED
from attensor.compare.phases import Watch
from attensor.compare.plan import Plan
from attensor.compare.subjects import Subject
from attensor.files import locked, write_json
from attensor.lab import Cell, Interruption, Outcome, Pool, Reporter

__all__ = ["measure", "run_measurements"]


def run_measurements(
    run: Path,
    plan: Plan,
    subjects: Sequence[Subject],
    *,
    interruption: Interruption,
    watch: Watch,
    on_end: Callable[[], object],
) -> None:
    """Measure trained mechanisms side by side; one that fails or ends the process costs its row.

    Args:
        run: folder of the run.
        plan: of the run.
        subjects: whose.
        interruption: as of `Pool`.
        watch: shows what happens.
        on_end: called when a mechanism has failed, and when all are measured.
    """
    left = _Left(run.absolute(), subjects, watch, on_end)
    pool = Pool(interruption, threads=plan.threads, kernels=plan.cell_kernels)
    while left.subjects and not interruption.requested:
        (left.run / AT_WORK).unlink(missing_ok=True)
        asked = {"run": str(left.run), "names": list(left.subjects)}
        cell, before = Cell.of(measure, asked, log=left.run / "measure.log"), len(left.subjects)
        pool.run([cell], at_once=1, on_end=left.on_outcome, on_event=left.on_event, on_tick=watch.tick)
        if len(left.subjects) == before:
            return  # it was stopped


class _Left:
    """The mechanisms that have not been measured yet, and what happens to them."""

    def __init__(self, run: Path, subjects: Sequence[Subject], watch: Watch, on_end: Callable[[], object]) -> None:
        self.run, self._watch, self._on_end = run, watch, on_end
        self.subjects = {subject.name: subject for subject in subjects}
        for subject in subjects:
            (subject.folder(run) / FAILED).unlink(missing_ok=True)

    def on_event(self, cell: Cell, event: dict[str, Any]) -> None:
        """One is done, or something is to be shown."""
        if event["stage"] == "end":
            self._ended(event["name"], event["reason"])
        else:
            self._watch.event(event["name"], event)

    def on_outcome(self, cell: Cell, outcome: Outcome) -> None:
        """The process has ended: of a failure, it is the one at work that suffers, or all if it was nobody's."""
        if outcome.reason is None:
            return
        culprit = _at_work(self.run)
        for name in [culprit] if culprit in self.subjects else list(self.subjects):
            write_json(self.subjects[name].folder(self.run) / FAILED, {"reason": outcome.reason})
            self._ended(name, outcome.reason)

    def _ended(self, name: str, reason: str | None) -> None:
        del self.subjects[name]
        self._watch.ended(name, "measure", reason)
        self._on_end()


def _at_work(run: Path) -> str:
    path = run / AT_WORK
    return path.read_text(encoding="utf-8") if path.exists() else ""


def measure(run: str, names: list[str]) -> None:
    """The cell that measures the layers of trained mechanisms."""
    import torch

    from attensor.compare.measure import Measurement

    folder = Path(run)
    plan = Plan.load(folder)
    if plan.device == "cuda":
        # the same numbers after a resume; operations that cannot promise it only warn
        torch.use_deterministic_algorithms(True, warn_only=True)
    subjects = [plan.subject(name) for name in names]
    with ExitStack() as locks:
        for subject in subjects:
            # waits for a process whose parent was killed: it ends at its next event
            locks.enter_context(locked(subject.folder(folder), wait=True))
        Measurement(plan, subjects, folder, Reporter.current()).run()
