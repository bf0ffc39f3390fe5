"""Two phases of a mechanism, as cells, and what the terminal shows of them and of the measurements.

First its laws and the time of its steps; when that is known of all, its training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attensor.compare.plan import Plan
from attensor.compare.subjects import Subject
from attensor.files import locked, write_json
from attensor.lab import Cell, Display, Interruption, Outcome, Pool, Reporter

__all__ = ["PHASES", "Watch", "run_phase"]

PHASES = ("calibrate", "train", "measure")

# a start of Python, laws, a few steps; what training takes besides its steps
_CALIBRATE_SECONDS = 5.0
_START_SECONDS = 3.0
# from the first of these measurements on
_MEASURE_SECONDS = {"cost": 5.0, "decode": 2.0, "generation": 1.0}
# 0.0 is for what has ended and is counted as done
_NOT_ENDED = 1e-3


class Watch:
    """Shows what the processes say, as bars, lines and the time left.

    Args:
        plan: of the run.
        display: with a row for each mechanism.
    """

    def __init__(self, plan: Plan, display: Display) -> None:
        self._display = display
        names = [subject.name for subject in plan.subjects]
        self._calibrating = display.expect(dict.fromkeys(names, _CALIBRATE_SECONDS), plan.jobs)
        # None: not known before all have been calibrated
        guess = None if plan.budget_seconds is None else plan.budget_seconds * plan.jobs / len(names) + _START_SECONDS
        # trainings run `jobs` at a time, measurements in turns
        self._training = display.expect(dict.fromkeys(names, guess), plan.jobs)
        self._measuring = display.expect(dict.fromkeys(names, _MEASURE_SECONDS["cost"]), 1)
        self.tick = display.tick

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Of those that are not trained yet, the time that the training will take."""
        for name, of_one in seconds.items():
            if self._training.left[name] != 0.0:
                self._training.left[name] = of_one + _START_SECONDS

    def event(self, name: str, event: dict[str, Any]) -> None:
        """Show one event of a mechanism."""
        stage = event["stage"]
        if stage in ("cost", "decode", "generation"):
            state = f"measures {stage}, {event['size']}"
            self._measuring.left[name] = _MEASURE_SECONDS[stage]
        else:
            score = event.get("score")
            state = stage if score is None else f"{stage}, {score:.3f}"
            if "seconds_left" in event:
                self._training.left[name] = max(event["seconds_left"], _NOT_ENDED)
        self._display.row(name, state, stage=stage, fraction=event.get("fraction"))
        self.tick()

    def ended(self, name: str, phase: str, reason: str | None) -> None:
        """Show the end of a phase, or why it failed."""
        self.finished(name, "measure" if reason is not None else phase)
        if reason is not None:
            self._display.alarm(f"{name} failed", reason)
        done = {"calibrate": "calibrated", "train": "trained", "measure": "done"}[phase]
        state = "failed" if reason is not None else done
        self._display.row(name, state, stage=f"end of {phase}", fraction=None if reason else 1.0)
        self.tick()

    def finished(self, name: str, phase: str) -> None:
        """A mechanism is through this phase and those before it, now or by an earlier run."""
        for of_phase, work in zip(PHASES, (self._calibrating, self._training, self._measuring), strict=True):
            self._display.done += work.left[name] != 0.0
            work.finished(name)
            if of_phase == phase:
                break


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
        phase: `"calibrate"` or `"train"`.
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

    Pool(interruption, threads=plan.threads, kernels=plan.cell_kernels).run(
        [_cell(run, phase, subject) for subject in subjects],
        at_once=at_once,
        on_end=ended,
        on_event=lambda cell, event: watch.event(cell.arguments["name"], event),
        on_tick=watch.tick,
    )


def _cell(run: Path, phase: str, subject: Subject) -> Cell:
    """The cell of a phase; an earlier failure is forgotten."""
    run = run.absolute()  # the cell may be in another folder by the time it writes
    folder = subject.folder(run)
    folder.mkdir(exist_ok=True)
    (folder / f"failed-{phase}.json").unlink(missing_ok=True)
    function = {"calibrate": calibrate, "train": train}[phase]
    return Cell.of(function, {"run": str(run), "name": subject.name}, log=folder / f"{phase}.log")


def calibrate(run: str, name: str) -> None:
    """The cell that finds out whether a mechanism of a run can be compared, and how long its steps take."""
    from attensor.compare.stages import Calibration

    _work(Calibration, Path(run), name)


def train(run: str, name: str) -> None:
    """The cell that trains one mechanism of a run."""
    from attensor.compare.stages import Training

    _work(Training, Path(run), name)


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
