"""What the terminal shows while cells are computed: bars and the time left, or plain lines in a pipe."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

__all__ = ["Display", "Estimate", "clock"]


def clock(seconds: float) -> str:
    """Seconds as `1:05`, or `2:00:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Estimate:
    """How long some units of work will take, of which `at_once` run at the same time.

    Args:
        units: seconds that each has left; None where nothing is known, until others like it have ended.
        at_once: units that run side by side.
    """

    def __init__(self, units: Mapping[Hashable, float | None], at_once: int) -> None:
        self.left = dict(units)
        self._at_once = at_once
        self._took: list[float] = []
        self._started = time.monotonic()

    def finished(self, unit: Hashable, seconds: float | None = None) -> None:
        """One has ended, after so many seconds if that tells of the others."""
        self.left[unit] = 0.0
        if seconds is not None:
            self._took.append(seconds)

    def seconds(self) -> float | None:
        """Until all have ended; None when nothing is known."""
        known = [left for left in self.left.values() if left is not None]
        typical = fmean(self._took) if self._took else max(known, default=None)
        if typical is None:
            return None
        all_of_them = [typical if left is None else left for left in self.left.values()]
        seconds = max(sum(all_of_them) / self._at_once, *all_of_them)
        if len(known) < len(all_of_them):
            # what those under way have spent is known only as what the ended ones do not explain
            seconds -= max(time.monotonic() - self._started - sum(self._took) / self._at_once, 0.0)
        return max(seconds, 0.0)


class Display:
    """A bar for everything, below bars for named rows; where the output is no terminal, one line a change.

    Args:
        title: of the bar for everything.
        rows: names of further bars.
        console: where to show.
    """

    def __init__(self, title: str, rows: Sequence[str] = (), *, console: Console | None = None) -> None:
        self._console = console or Console()
        # bars in a notebook are a widget of ipywidgets
        has_widgets = self._console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        self._is_live = self._console.is_terminal or has_widgets
        self._started = time.monotonic()
        self._work: list[Estimate] = []
        self._seen: dict[str, str] = {}
        self._total = self.done = 0
        columns = (TextColumn("{task.description:<16}"), BarColumn(None), TextColumn("{task.fields[state]:<28}"))
        self._progress = Progress(*columns, console=self._console, expand=True)
        self._bars = {row: self._progress.add_task(row, total=1.0, state="waits") for row in rows}
        self._all = self._progress.add_task(f"[bold]{title}", total=1.0, state="")

    def __enter__(self) -> Self:
        if self._is_live:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_live:
            self._progress.stop()

    def expect(self, units: Mapping[Any, float | None], at_once: int, *, done: int = 0) -> Estimate:
        """Work that follows what was expected before; `done` units of it are not in `units`, being done."""
        self._work.append(Estimate(units, at_once))
        self._total += len(units) + done
        self.done += done
        return self._work[-1]

    def row(self, name: str, state: str, *, stage: str = "", fraction: float | None = None) -> None:
        """Show a row's state; as a line only when its `stage` is another than before."""
        if self._is_live:
            self._progress.update(self._bars[name], state=state, completed=fraction)
        elif self._seen.get(name) != stage:
            self.line(f"{name}: {state}")
        self._seen[name] = stage

    def line(self, text: str) -> None:
        """A line, where the output is no terminal: how much of all is done, since when, the time left, then `text`."""
        if self._is_live:
            return
        left = self.seconds_left()
        rest = f", about {clock(left)} left" if left is not None and self.done < self._total else ""
        where = f"{self.done:>{len(str(self._total))}}/{self._total}  {clock(time.monotonic() - self._started)}{rest}"
        self._console.print(f"{where}  {text}", highlight=False, markup=False, soft_wrap=True)

    def alarm(self, headline: str, text: str) -> None:
        """A line in any case, of which the headline is red."""
        self._console.print(Text(f"{headline}: ", style="red").append(text, style="default"), soft_wrap=True)

    def seconds_left(self) -> float | None:
        """Until everything has ended; None when nothing is known."""
        parts = [work.seconds() for work in self._work]
        return None if None in parts else sum(part for part in parts if part is not None)

    def tick(self) -> None:
        """Bring the bar for everything up to date."""
        if not self._is_live:
            return
        left, gone = self.seconds_left(), time.monotonic() - self._started
        state, completed = f"{self.done} of {self._total}", self.done / max(self._total, 1)
        if left is not None and self.done < self._total:
            state += f", about {clock(left)} left"
            completed = gone / max(gone + left, 1e-9)
        self._progress.update(self._all, completed=completed, state=state)
