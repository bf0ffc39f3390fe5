"""Cells of a recipe: independent pieces of work, computed by processes with one thread each, kept as they finish.

A cell is a module-level function and its arguments, which are JSON; so is what it returns. It is kept in
`<folder>/cells/` under the function's name and a digest of the arguments, so that an interrupted recipe computes only
what is missing.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from attensor.files import read_json, write_json

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from attensor.recipes._recipe import RecipeConfig

__all__ = ["CellError", "run_cells"]

Cell = dict[str, Any]


class CellError(RuntimeError):
    """A cell could not be computed; the message names the function, its arguments and the reason."""


def run_cells(
    config: RecipeConfig, function: Callable[..., Any], cells: Sequence[Cell], *, at_once: int | None = None
) -> list[Any]:
    """Compute `function(**cell)` for every cell, and keep each result as soon as it is there.

    Args:
        config: the folder that keeps the results, and whether those in it count.
        function: of a module, so that a new process can import it; returns something JSON can hold.
        cells: arguments, JSON values only.
        at_once: processes, each with one thread; as many as there are cores if None. Measurements of time take 1, so
            that none disturbs another.
    Returns:
        The results in the order of `cells`.
    Raises:
        CellError: a cell failed, or its process died.
        KeyboardInterrupt: Ctrl-C; finished cells are kept, those under way are not.
    """
    folder = config.folder / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{_key(function, cell)}.json" for cell in cells]
    if not config.resume:
        for path in paths:
            path.unlink(missing_ok=True)
    missing = [(cell, path) for cell, path in zip(cells, paths, strict=True) if not path.exists()]
    if missing:
        _Workers(function, min(at_once or os.cpu_count() or 1, len(missing))).compute(missing, len(cells))
    return [read_json(path)["result"] for path in paths]


def _key(function: Callable[..., Any], cell: Cell) -> str:
    text = json.dumps(cell, sort_keys=True, allow_nan=False)
    return f"{function.__name__}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _call(function: Callable[..., Any], cell: Cell) -> str:
    return f"{function.__name__}({', '.join(f'{name}={value!r}' for name, value in cell.items())})"


def _serve(connection: Connection, function: Callable[..., Any]) -> None:
    """A worker: receives cells and answers (result as JSON, None) or (None, reason), until the other side closes."""
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            cell = connection.recv()
        except EOFError:
            return
        try:
            # numbers that JSON does not have are a failure of this cell
            result = json.dumps(function(**cell), allow_nan=False)
        except Exception:
            connection.send((None, traceback.format_exc()))
        else:
            connection.send((result, None))


class _Workers:
    """Processes that take turns in computing cells.

    Args:
        function: what they compute.
        count: of processes.
    """

    def __init__(self, function: Callable[..., Any], count: int) -> None:
        self._function, self._count = function, count
        self._running: dict[Connection, tuple[SpawnProcess, Cell, Path, float]] = {}

    def compute(self, missing: Sequence[tuple[Cell, Path]], total: int) -> None:
        """Compute and write the missing cells, `total` being all that were asked for."""
        waiting = list(missing)
        with _Display(self._function.__name__, total, total - len(missing), self._count) as display:
            try:
                for _ in range(self._count):
                    self._give(*self._start(), *waiting.pop(0))
                while self._running:
                    for connection in cast("list[Connection]", wait(list(self._running), timeout=1.0)):
                        process, cell, path, started = self._running[connection]
                        result = self._received(connection, process, cell, path)
                        write_json(path, {"function": self._function.__name__, "cell": cell, "result": result})
                        display.finished(cell, time.monotonic() - started)
                        if waiting:
                            self._give(connection, process, *waiting.pop(0))
                        else:
                            self._end(connection)
                    display.show()
            finally:
                for process, *_ in self._running.values():
                    process.terminate()
                for connection in list(self._running):
                    self._end(connection)

    def _start(self) -> tuple[Connection, SpawnProcess]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._function), daemon=True)
        # a process inherits what is blocked: Ctrl-C reaches the workers through us alone
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return ours, process

    def _give(self, connection: Connection, process: SpawnProcess, cell: Cell, path: Path) -> None:
        self._running[connection] = (process, cell, path, time.monotonic())
        connection.send(cell)

    def _end(self, connection: Connection) -> None:
        process = self._running.pop(connection)[0]
        connection.close()
        process.join()

    def _received(self, connection: Connection, process: SpawnProcess, cell: Cell, path: Path) -> Any:
        try:
            result, trace = connection.recv()
        except EOFError:
            process.join()
            code = process.exitcode or 0
            how = "it was killed, most likely because memory ran out" if code == -signal.SIGKILL else f"status {code}"
            raise CellError(f"{_call(self._function, cell)}: its process died: {how}.") from None
        if trace is not None:
            log = path.with_suffix(".failed.txt")
            log.write_text(f"{_call(self._function, cell)}\n\n{trace}", encoding="utf-8")
            raise CellError(f"{_call(self._function, cell)} failed: {trace.strip().splitlines()[-1]} (see {log})")
        return json.loads(result)


class _Display:
    """A bar with the time left; one line a cell where the output is no terminal."""

    def __init__(self, name: str, total: int, done: int, at_once: int) -> None:
        self._console = Console()
        self._name, self._total, self._done, self._at_once = name, total, done, at_once
        self._seconds: list[float] = []
        self._started = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
        self._progress = Progress(*columns, console=self._console)
        self._task = self._progress.add_task(name, total=total, completed=done, state=f"{done} of {total}")

    def __enter__(self) -> _Display:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def finished(self, cell: Cell, seconds: float) -> None:
        """One more cell is done."""
        self._done += 1
        self._seconds.append(seconds)
        if not self._console.is_terminal:
            values = " ".join(f"{name}={value}" for name, value in cell.items())
            self._console.print(
                f"{self._done:3} of {self._total} {self._name}: {values}, {seconds:.1f} s",
                highlight=False,
                markup=False,
            )

    def show(self) -> None:
        """Bring the bar up to date."""
        state = f"{self._done} of {self._total}"
        if self._seconds and self._done < self._total:
            mean = sum(self._seconds) / len(self._seconds)
            # what the running cells have spent already is known only as the time since the last one finished
            spent = time.monotonic() - self._started - sum(self._seconds) / self._at_once
            left = max(mean * (self._total - self._done) / self._at_once - spent, 0.0)
            minutes, seconds = divmod(round(left), 60)
            state += f", about {minutes}:{seconds:02d} left"
        self._progress.update(self._task, completed=self._done, state=state)
