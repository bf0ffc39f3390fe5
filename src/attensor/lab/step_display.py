"""What the terminal shows of one training: a bar with images a second and the time left, or lines in a pipe."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from attensor.lab.display import clock

__all__ = ["StepDisplay"]

_LINE_SECONDS = 30.0
_MEMORY = 0.9  # of the mean time of a step


class StepDisplay:
    """Steps of one training.

    Args:
        steps: of the whole run.
        units: things that a step works on.
        unit: what they are called, for instance `"images"`.
        console: where to show.
    """

    def __init__(self, steps: int, *, units: int, unit: str = "images", console: Console | None = None) -> None:
        self._console = console or Console()
        self._steps, self._units, self._unit = steps, units, unit
        columns = (
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(None),
            TextColumn("{task.fields[state]}"),
        )
        self._bar = Progress(*columns, console=self._console, expand=True)
        self._task = self._bar.add_task("", total=steps, state="")
        self._started = self._last = self._said = time.monotonic()
        self._seconds: float | None = None
        self._before: int | None = None  # steps of an earlier process

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def step(self, step: int, text: str = "") -> None:
        """So many steps are done; `text`, such as a score, makes a line of its own."""
        now = time.monotonic()
        self._before = step - 1 if self._before is None else self._before
        took, self._last = now - self._last, now
        self._seconds = took if self._seconds is None else _MEMORY * self._seconds + (1 - _MEMORY) * took
        per_second = self._units / max(self._seconds, 1e-9)
        # evaluations and checkpoints are part of the mean
        left = (self._steps - step) * (now - self._started) / max(1, step - self._before)
        state = f"{per_second:.3g} {self._unit}/s, about {clock(left)} left"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, state=state)
            if text:
                self.say(f"step {step}  {text}")
        elif text or now - self._said >= _LINE_SECONDS:
            self._said = now
            self.say("  ".join(filter(None, (f"step {step}/{self._steps}", state, text))))

    def say(self, text: str) -> None:
        """A line, above the bar if there is one."""
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
