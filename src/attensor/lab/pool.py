"""Cells, and the processes that compute them: starts them, listens to them, stops them."""

from __future__ import annotations

import hashlib
import json
import queue
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from attensor.lab.interruption import Interruption
from attensor.lab.process import News, Process
from attensor.lab.reason import death

__all__ = ["Cell", "Outcome", "Pool"]

_TICK_SECONDS = 0.5


@dataclass(frozen=True)
class Cell:
    """A piece of work that another process can do: a function of a module and its arguments, which are JSON.

    Attributes:
        function: `"module:name"`.
        arguments: by name, JSON values.
        log: file for what it prints and for its errors, in a process of its own; None: with those of this process.
    """

    function: str
    arguments: dict[str, Any]
    log: Path | None = None

    @classmethod
    def of(cls, function: Callable[..., Any], arguments: dict[str, Any], *, log: Path | None = None) -> Cell:
        """The call `function(**arguments)`.

        Raises:
            ValueError: another process cannot import the function.
        """
        module, name = function.__module__, function.__qualname__
        if module == "__main__" or "." in name:
            raise ValueError(f"Cell.of: {module}.{name} must be a function of a module that can be imported.")
        return cls(f"{module}:{name}", arguments, log)

    @property
    def name(self) -> str:
        """Of the function."""
        return self.function.rpartition(":")[2]

    @property
    def key(self) -> str:
        """A name for its file: the function's and a digest of the arguments."""
        text = json.dumps(self.arguments, sort_keys=True, allow_nan=False)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        result: what its function returned.
        reason: why it failed, in one line, or None.
        trace: of the exception, where there was one.
        is_stopped: it was asked to stop, and can go on later.
        seconds: it took.
    """

    result: Any = None
    reason: str | None = None
    trace: str | None = None
    is_stopped: bool = False
    seconds: float = 0.0


def _is_own(cell: Cell) -> bool:
    """Whether a function is attensor's, which needs nothing of the current folder."""
    return cell.function.startswith("attensor.")


class Pool:
    """Runs cells in processes.

    Args:
        interruption: asked before each start; told which processes live.
        threads: of each process.
        kernels: `"cpp"` or `"torch"`, what operators with C++ kernels take in every cell; None leaves it to them.
        limit_seconds: after which a cell is ended; None for no limit.
    """

    def __init__(
        self,
        interruption: Interruption,
        *,
        threads: int = 1,
        kernels: str | None = None,
        limit_seconds: float | None = None,
    ) -> None:
        self._interruption, self._threads, self._kernels = interruption, threads, kernels
        self._limit_seconds = limit_seconds
        self._news: News = queue.Queue()

    def run(
        self,
        cells: Sequence[Cell],
        *,
        at_once: int,
        on_end: Callable[[Cell, Outcome], object],
        on_event: Callable[[Cell, dict[str, Any]], object] = lambda cell, event: None,
        on_tick: Callable[[], object] = lambda: None,
    ) -> None:
        """Compute the cells, `at_once` at a time; returns when all have ended, after an interruption those under way.

        Args:
            cells: with a log, each in a process of its own; without, processes take one after the other.
            at_once: processes.
            on_end: told how each cell ended.
            on_event: told what the cells say.
            on_tick: called every now and then.
        """
        waiting, workers = list(cells), list[_Worker]()
        self._with_current_folder = not all(_is_own(cell) for cell in cells)
        try:
            while workers or (waiting and not self._interruption.requested):
                while waiting and len(workers) < at_once and not self._interruption.requested:
                    workers.append(self._start(waiting.pop(0)))
                on_tick()
                self._look_after(workers)
                try:
                    worker, message = self._news.get(timeout=_TICK_SECONDS)
                except queue.Empty:
                    continue
                if worker not in workers or (message is not None and worker.cell is None):
                    continue  # its end has been told already, or it answers what nobody asked
                if message is None:
                    workers.remove(worker)
                if message is not None and "event" in message:
                    on_event(cast("Cell", worker.cell), message["event"])
                else:
                    self._conclude(worker, message, waiting, on_end)
        finally:
            self._end(workers)

    def _end(self, workers: Sequence[_Worker]) -> None:
        for worker in workers:
            worker.close()
            if worker.cell is not None:  # one without work ends by itself, now that nothing more can come
                worker.process.terminate()
            worker.status()
            self._forget(worker)

    def _look_after(self, workers: Sequence[_Worker]) -> None:
        for worker in workers:
            worker.look_after(must_end=self._interruption.requested)
            if self._is_late(worker):
                worker.process.kill()

    def _start(self, cell: Cell) -> _Worker:
        worker = _Worker(self._news, log=cell.log, threads=self._threads, with_current_folder=self._with_current_folder)
        self._interruption.processes.append(worker.process)
        if self._interruption.requested:  # between the last look and the start
            worker.process.terminate()
        self._ask(worker, cell)
        return worker

    def _ask(self, worker: _Worker, cell: Cell) -> None:
        worker.cell, worker.started = cell, time.monotonic()
        call = {"function": cell.function, "arguments": cell.arguments}
        worker.write(json.dumps({**call, "threads": self._threads, "kernels": self._kernels}, allow_nan=False))

    def _is_late(self, worker: _Worker) -> bool:
        limit = self._limit_seconds
        return limit is not None and worker.cell is not None and time.monotonic() > worker.started + limit

    def _conclude(
        self,
        worker: _Worker,
        message: dict[str, Any] | None,
        waiting: list[Cell],
        on_end: Callable[[Cell, Outcome], object],
    ) -> None:
        """A cell has ended with a message, or a process without."""
        is_late, cell, worker.cell = self._is_late(worker), worker.cell, None
        seconds = time.monotonic() - worker.started
        if message is not None:
            if waiting and worker.log is None and not self._interruption.requested:
                self._ask(worker, waiting.pop(0))
            else:
                worker.close()
            outcome = Outcome(
                message.get("result"), message.get("reason"), message.get("trace"), "stopped" in message, seconds
            )
        else:
            worker.close()
            status = worker.status()
            self._forget(worker)
            # SIGKILL: it did not end when it was asked to, and `look_after` has ended it
            is_stopped = self._interruption.requested and status in (-signal.SIGTERM, -signal.SIGKILL)
            late = f"did not end within {self._limit_seconds:.0f} s" if is_late else None
            reason = None if is_stopped or cell is None else late or death(status, worker.log)
            outcome = Outcome(reason=reason, is_stopped=is_stopped, seconds=seconds)
        if cell is not None:
            on_end(cell, outcome)

    def _forget(self, worker: _Worker) -> None:
        if worker.process in self._interruption.processes:
            self._interruption.processes.remove(worker.process)


class _Worker(Process):
    """A process, the cell it is at (None: it is ending) and since when."""

    cell: Cell | None = None
    started = 0.0
