"""A bar that shows how far a benchmark is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["progress"]


@contextmanager
def progress(console: Console, cells: int) -> Iterator[Callable[[str, float], None]]:
    """A bar that moves between calls: drawn by no thread of its own, which would take time from what is measured.

    Args:
        console: where to draw; the bar is gone after the `with` block.
        cells: what is to be measured, in all.
    Returns:
        in the block, a function that is told what runs, and that a further share of a cell is done.
    """
    columns = BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=cells)

        def tick(running: str, share: float) -> None:
            bar.update(task, description=running, advance=share)
            bar.refresh()

        yield tick
