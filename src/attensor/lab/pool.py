"""Cells, and the processes that compute them: starts them, listens to them, stops them."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from attensor.lab.interruption import Interruption, interrupts_blocked
from attensor.lab.reason import death
from attensor.lab.reporter import ANSWERS
from attensor.processes import python_command

__all__ = ["Cell", "Outcome", "Pool"]

_TICK_SECONDS = 0.5
# a process that is asked to end may write a checkpoint first
_LAST_SECONDS = 30.0
# one that has ended may have left children that hold its pipe open
_SILENT_SECONDS = 2.0


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
        self._news: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()

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
        # attensor's own functions need nothing of the current folder
        self._with_current_folder = not all(cell.function.startswith("attensor.") for cell in cells)
        try:
            while waiting or workers:
                while waiting and len(workers) < at_once and not self._interruption.requested:
                    workers.append(self._start(waiting.pop(0)))
                if not workers:
                    return
                on_tick()
                for worker in workers:
                    self._look_after(worker)
                try:
                    worker, message = self._news.get(timeout=_TICK_SECONDS)
                except queue.Empty:
                    continue
                if worker not in workers or (message is not None and worker.cell is None):
                    continue  # its end has been told already, or it answers what nobody asked
                if message is not None and "event" in message:
                    on_event(cast("Cell", worker.cell), message["event"])
                    continue
                if message is None:
                    workers.remove(worker)
                self._conclude(worker, message, waiting, on_end)
        finally:
            for worker in workers:
                self._end(worker)

    def _start(self, cell: Cell) -> _Worker:
        threads = str(self._threads)
        command, environment = python_command("attensor.lab.worker", with_current_folder=self._with_current_folder)
        answers, theirs = os.pipe()
        environment |= {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "PYTHONUNBUFFERED": "1",
            ANSWERS: str(theirs),
        }
        log = None if cell.log is None else cell.log.open("ab")
        try:
            with interrupts_blocked():
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log or 2, stderr=log, env=environment, pass_fds=(theirs,)
                )
        except BaseException:
            os.close(answers)
            raise
        finally:
            os.close(theirs)
            if log is not None:
                log.close()
        self._interruption.processes.append(process)
        if self._interruption.requested:  # between the last look and the start
            process.terminate()
        worker = _Worker(process, cell.log)
        threading.Thread(target=self._listen, args=(worker, os.fdopen(answers, "rb")), daemon=True).start()
        self._ask(worker, cell)
        return worker

    def _ask(self, worker: _Worker, cell: Cell) -> None:
        worker.cell, worker.started = cell, time.monotonic()
        call = {"function": cell.function, "arguments": cell.arguments}
        worker.write(json.dumps({**call, "threads": self._threads, "kernels": self._kernels}, allow_nan=False))

    def _listen(self, worker: _Worker, pipe: IO[bytes]) -> None:
        try:
            for line in pipe:
                message = _message(line)
                if message is not None:
                    self._news.put((worker, message))
        finally:  # whatever happened, the end is told
            pipe.close()
            self._news.put((worker, None))

    def _look_after(self, worker: _Worker) -> None:
        """End a process that takes too long, and notice one that has ended without a word."""
        now = time.monotonic()
        if self._limit_seconds is not None and worker.cell and now > worker.started + self._limit_seconds:
            worker.overdue = f"did not end within {self._limit_seconds:.0f} s"
        if worker.last is None and (self._interruption.requested or worker.is_closed):
            worker.last = now + _LAST_SECONDS
        if worker.overdue or (worker.last is not None and now > worker.last):
            worker.process.kill()
        if worker.process.poll() is not None:
            worker.silent = worker.silent or now + _SILENT_SECONDS
            if now > worker.silent:
                self._news.put((worker, None))

    def _conclude(
        self,
        worker: _Worker,
        message: dict[str, Any] | None,
        waiting: list[Cell],
        on_end: Callable[[Cell, Outcome], object],
    ) -> None:
        """A cell has ended with a message, or a process without."""
        cell, worker.cell = worker.cell, None
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
            status = self._status(worker)
            self._interruption.processes.remove(worker.process)
            # killed by us, it did not listen
            is_stopped = self._interruption.requested and status in (-signal.SIGTERM, -signal.SIGKILL)
            reason = None if is_stopped or cell is None else worker.overdue or death(status, worker.log)
            outcome = Outcome(reason=reason, is_stopped=is_stopped, seconds=seconds)
        if cell is not None:
            on_end(cell, outcome)

    def _end(self, worker: _Worker) -> None:
        worker.close()
        if worker.cell is not None:  # one without work ends by itself, now that nothing more can come
            worker.process.terminate()
        self._status(worker)
        if worker.process in self._interruption.processes:
            self._interruption.processes.remove(worker.process)

    def _status(self, worker: _Worker) -> int:
        """How the process ended; ended by force if it goes on without an answer."""
        try:
            return worker.process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            return worker.process.wait()


def _message(line: bytes) -> dict[str, Any] | None:
    """What a process of ours says; None for a line of anybody else who found the descriptor."""
    with suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict) and found.keys() & {"event", "result", "reason", "stopped"}:
            return found
    return None


class _Worker:
    """One process, the cell it is at (None: it is ending) and since when.

    Attributes:
        last: when it is ended by force, having been asked to end; None: nobody has asked.
        silent: when its end is taken for granted, though its pipe is open; 0: it lives.
        overdue: why it was ended by force, while it was at a cell.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path | None) -> None:
        self.process, self.log = process, log
        self.cell: Cell | None = None
        self.started = self.silent = 0.0
        self.last: float | None = None
        self.overdue: str | None = None
        self._requests = cast("IO[bytes]", process.stdin)

    @property
    def is_closed(self) -> bool:
        """Whether it has been asked for no more."""
        return self._requests.closed

    def write(self, line: str) -> None:
        """Ask; a process that has just died says so by the end of its answers."""
        with suppress(BrokenPipeError):
            self._requests.write(line.encode() + b"\n")
            self._requests.flush()

    def close(self) -> None:
        """Ask for no more: the process ends after the cell it is at."""
        with suppress(BrokenPipeError):
            self._requests.close()
