"""What the terminal shows while a comparison runs: a bar a mechanism and the time left, or plain lines in a pipe."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from attensor.compare.plan import Plan

__all__ = ["Display"]

# what a mechanism takes besides its training: two starts of Python, laws, calibration; then its measurements
_START_SECONDS = 5.0
_MEASURE_SECONDS = 6.0


class Display:
    """Shows events of the workers, and how long everything will take.

    Args:
        plan: of the run.
        console: where to show; a console that is no terminal gets one line a stage.
    """

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan, self._console = plan, console
        self._is_live = console.is_terminal
        # None: not known before the first one of them has measured its step
        share = None if plan.share_seconds is None else plan.share_seconds + _START_SECONDS
        self._training = {s.name: share for s in plan.subjects}
        self._measuring = {s.name: _MEASURE_SECONDS for s in plan.subjects}
        self._stages: dict[str, str] = {}
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]:<28}"),
            console=console,
            expand=True,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if self._is_live:
            self._bars = {
                s.name: self._progress.add_task(s.name, total=1.0, state="waits") for s in self._plan.subjects
            }
            self._bars["all"] = self._progress.add_task("[bold]all", total=1.0, state="")
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_live:
            self._progress.stop()

    def event(self, name: str, event: dict[str, Any]) -> None:
        """Show one event of the worker `name`."""
        if "ended" in event:
            self._end(name, event["phase"], event["ended"])
        else:
            stage = event["stage"]
            if stage in ("cost", "decode"):
                self._training[name] = 0.0
                state = f"measures {stage}" + (f", {event['length']}" if "length" in event else "")
            else:
                score = event.get("score")
                state = stage if score is None else f"{stage}, {score:.3f}"
                if "seconds_left" in event:
                    self._training[name] = event["seconds_left"]
            self._show(name, stage, state, event.get("fraction"))
        self._show_all()

    def seconds_left(self) -> float:
        """An estimate: trainings run `jobs` at a time, measurements one at a time."""
        known = [seconds for seconds in self._training.values() if seconds is not None]
        typical = max(known, default=_START_SECONDS)
        training = [typical if seconds is None else seconds for seconds in self._training.values()]
        return max(sum(training) / self._plan.jobs, max(training)) + sum(self._measuring.values())

    def _end(self, name: str, phase: str, reason: str | None) -> None:
        self._training[name] = 0.0
        if phase == "measure" or reason is not None:
            self._measuring[name] = 0.0
        if reason is not None:
            self._show(name, f"failed-{phase}", "[red]failed", None)
            self._console.print(f"[red]{name} failed:[/] ", end="")
            self._console.print(reason, markup=False, highlight=False)
        else:
            self._show(name, f"done-{phase}", "trained" if phase == "train" else "done", 1.0)

    def _show(self, name: str, stage: str, state: str, fraction: float | None) -> None:
        if self._is_live:
            self._progress.update(self._bars[name], state=state, completed=fraction)
        elif self._stages.get(name) != stage and "failed" not in stage:
            self._console.print(f"{time.monotonic() - self._started:6.1f} s  {name:<16} {state}", highlight=False)
        self._stages[name] = stage

    def _show_all(self) -> None:
        if self._is_live:
            left, gone = self.seconds_left(), time.monotonic() - self._started
            minutes, seconds = divmod(round(left), 60)
            self._progress.update(
                self._bars["all"], completed=gone / max(gone + left, 1e-9), state=f"about {minutes}:{seconds:02d} left"
            )
