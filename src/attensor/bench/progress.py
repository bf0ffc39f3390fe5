"""A bar that shows how far a benchmark is."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Display"]


class Display:
    """A bar that moves between calls: drawn by no thread of its own, which would take time from what is measured.

    Args:
        console: where to draw; the bar is gone after the `with` block.
        cells: what is to be measured, in all.
    """

    def __init__(self, console: Console, cells: int) -> None:
        columns = (
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        self._progress = Progress(*columns, console=console, auto_refresh=False, transient=True)
        self._task = self._progress.add_task("", total=cells)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def tick(self, running: str, share: float) -> None:
        """Say what runs, and that a further share of a cell is done."""
        self._progress.update(self._task, description=running, advance=share)
        self._progress.refresh()
