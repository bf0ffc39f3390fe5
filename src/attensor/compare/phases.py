"""The two phases of a mechanism, as cells: its training, then, alone on the machine, the cost of its layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attensor.compare.plan import Plan
from attensor.compare.progress import Watch
from attensor.compare.subjects import Subject
from attensor.files import locked, write_json
from attensor.lab import Cell, Interruption, Outcome, Pool, Reporter

__all__ = ["run_phase"]


def run_phase(
    run: Path,
    plan: Plan,
    phase: str,
    subjects: Sequence[Subject],
    *,
    at_once: int,
    interruption: Interruption,
    watch: Watch,
    on_end: Callable[[], object],
) -> None:
    """Bring `phase` of these mechanisms to its end; one that fails leaves `NAME/failed-PHASE.json` and costs its row.

    Args:
        run: folder of the run.
        plan: of the run.
        phase: `"train"` or `"measure"`.
        subjects: whose.
        at_once: processes.
        interruption: as of `Pool`.
        watch: shows what happens.
        on_end: called after each mechanism.
    """

    def ended(cell: Cell, outcome: Outcome) -> None:
        name = cell.arguments["name"]
        if outcome.reason is not None:
            write_json(plan.subject(name).folder(run) / f"failed-{phase}.json", {"reason": outcome.reason})
        watch.ended(name, phase, outcome.reason)
        on_end()

    # on a GPU the C++ kernels have no part
    kernels = plan.kernels if plan.device == "cpu" else None
    Pool(interruption, threads=plan.threads, kernels=kernels).run(
        [_cell(run, phase, subject) for subject in subjects],
        at_once=at_once,
        on_end=ended,
        on_event=lambda cell, event: watch.event(cell.arguments["name"], event),
        on_tick=watch.tick,
    )


def _cell(run: Path, phase: str, subject: Subject) -> Cell:
    """The cell of a phase; an earlier failure is forgotten."""
    folder = subject.folder(run)
    folder.mkdir(exist_ok=True)
    (folder / f"failed-{phase}.json").unlink(missing_ok=True)
    function = {"train": train, "measure": measure}[phase]
    return Cell.of(function, {"run": str(run), "name": subject.name}, log=folder / f"{phase}.log")


def train(run: str, name: str) -> None:
    """The cell that trains one mechanism of a run."""
    from attensor.compare.stages import Training

    _work(Training, Path(run), name)


def measure(run: str, name: str) -> None:
    """The cell that measures one mechanism's layer."""
    from attensor.compare.measure import Measurement

    _work(Measurement, Path(run), name)


def _work(phase: Callable[[Plan, Any, Path, Reporter], Any], run: Path, name: str) -> None:
    import torch

    plan = Plan.load(run)
    if plan.device == "cuda":
        # the same numbers after a resume; operations that cannot promise it only warn
        torch.use_deterministic_algorithms(True, warn_only=True)
    # waits for a process whose parent was killed: it ends at its next event
    subject = plan.subject(name)
    folder = subject.folder(run)
    with locked(folder, wait=True):
        phase(plan, subject, folder, Reporter.current()).run()
