"""Starts the workers, listens to them, stops them."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from attensor.compare.plan import Plan
from attensor.files import read_json, write_json

__all__ = ["Interruption", "Workers"]

_STOPPED = 75  # worker.STOPPED; importing the worker would import torch here
_LOG_LINES = 3
# `timeout` and some shells signal a process and then its group, which is one request
_SAME_REQUEST_SECONDS = 0.5


class Interruption:
    """Ctrl-C and SIGTERM inside the block: the first asks for a stop, the second ends at once.

    A signal that is ignored already stays so: under nohup, or after `&` in a script, Ctrl-C means another job.
    """

    def __init__(self) -> None:
        self.requested = False
        self._second_from = 0.0
        self.processes: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def listening(self) -> Iterator[Interruption]:
        """Handle the signals until the block ends."""
        heard = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is not signal.SIG_IGN]
        before = {s: signal.signal(s, self._on_signal) for s in heard}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if time.monotonic() < self._second_from:
                return
            for process in self.processes:
                process.kill()
            raise KeyboardInterrupt
        self.requested = True
        self._second_from = time.monotonic() + _SAME_REQUEST_SECONDS
        for process in self.processes:
            process.terminate()


class Workers:
    """Runs phases of mechanisms as processes.

    Args:
        run: folder of the run.
        plan: of the run.
        interruption: asked before each start; told which processes live.
        on_event: receives (name, event) for each event of a worker, and a last one with `"ended"`: None or a reason.
    """

    def __init__(
        self, run: Path, plan: Plan, interruption: Interruption, on_event: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self._run, self._plan, self._interruption, self._on_event = run, plan, interruption, on_event
        self._events: queue.Queue[tuple[str, dict[str, Any] | None]] = queue.Queue()

    def all(self, names: Sequence[str], phase: str, at_once: int) -> None:
        """Run `phase` of each mechanism, `at_once` processes at a time; returns when all have ended."""
        waiting = list(names)
        running: dict[str, subprocess.Popen[bytes]] = {}
        while waiting or running:
            while waiting and len(running) < at_once and not self._interruption.requested:
                name = waiting.pop(0)
                running[name] = self._start(name, phase)
            if not running:
                return
            try:
                name, event = self._events.get(timeout=0.2)
            except queue.Empty:
                continue
            if event is not None:
                self._on_event(name, event)
                continue
            process = running.pop(name)
            reason = self._reason(name, phase, process.wait())
            self._interruption.processes.remove(process)
            self._on_event(name, {"ended": reason, "phase": phase})

    def _start(self, name: str, phase: str) -> subprocess.Popen[bytes]:
        folder = self._run / name
        folder.mkdir(exist_ok=True)
        (folder / f"failed-{phase}.json").unlink(missing_ok=True)
        threads = str(self._plan.threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, "-m", "attensor.compare.worker", str(self._run), name, phase]
        with (folder / f"{phase}.log").open("ab") as log, _interrupts_blocked():
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
        self._interruption.processes.append(process)
        if self._interruption.requested:  # between the last look and the start
            process.terminate()
        threading.Thread(target=self._listen, args=(name, process.stdout), daemon=True).start()
        return process

    def _listen(self, name: str, pipe: IO[bytes]) -> None:
        for line in pipe:
            self._events.put((name, json.loads(line)))
        pipe.close()
        self._events.put((name, None))

    def _reason(self, name: str, phase: str, status: int) -> str | None:
        """Why a worker failed, written down for the results; None when it did not."""
        if status in (0, _STOPPED) or (self._interruption.requested and status == -signal.SIGTERM):
            return None
        path = self._run / name / f"failed-{phase}.json"
        if not path.exists():
            write_json(path, {"reason": self._death(name, phase, status)})
        return str(read_json(path)["reason"])

    def _death(self, name: str, phase: str, status: int) -> str:
        if status == -signal.SIGKILL:
            return "the process was killed by the system, most likely because memory ran out"
        lines = (self._run / name / f"{phase}.log").read_text(errors="replace").strip().splitlines()
        last = " | ".join(line.strip() for line in lines[-_LOG_LINES:])
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return f"the process ended with {how}: {last}"


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    # a process inherits what is blocked: Ctrl-C reaches the workers through us alone, as a request to save
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
