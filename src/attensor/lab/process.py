"""One process of a pool: started, listened to on a pipe of its own, and brought to its end in any case."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

from attensor.lab.interruption import interrupts_blocked
from attensor.lab.reporter import ANSWERS
from attensor.processes import python_command

__all__ = ["News", "Process"]

# who says what: an answer or an event, and None at the end
News = queue.Queue[tuple[Any, dict[str, Any] | None]]

# a process that is asked to end may write a checkpoint first
_LAST_SECONDS = 30.0
# one that has ended may have left children that hold its pipe open
_SILENT_SECONDS = 2.0


class Process:
    """`python -m attensor.lab.worker`, which answers requests.

    Args:
        news: where its answers go.
        log: file for whatever is printed there; None: the standard error of this process.
        threads: of its numerical libraries.
        with_current_folder: as of `python_command`.
    """

    def __init__(self, news: News, *, log: Path | None, threads: int, with_current_folder: bool) -> None:
        self.log = log
        self.process, answers = _started(log, threads, with_current_folder)
        self._news = news
        self._requests = cast("IO[bytes]", self.process.stdin)
        self._ends: float | None = None
        self._told: float | None = None
        threading.Thread(target=self._listen, args=(answers,), daemon=True).start()

    def write(self, line: str) -> None:
        """Ask; a process that has just died says so by the end of its answers."""
        with suppress(BrokenPipeError):
            self._requests.write(line.encode() + b"\n")
            self._requests.flush()

    def close(self) -> None:
        """Ask for no more: the process ends after what it is at."""
        with suppress(BrokenPipeError):
            self._requests.close()

    def look_after(self, *, must_end: bool) -> None:
        """End it by force when it has had its time to end, and tell its end when nobody else does.

        Args:
            must_end: it has been asked to.
        """
        now = time.monotonic()
        if self._ends is None and (must_end or self._requests.closed):
            self._ends = now + _LAST_SECONDS
        if self._ends is not None and now > self._ends:
            self.process.kill()
        if self.process.poll() is not None:
            self._told = now + _SILENT_SECONDS if self._told is None else self._told
            if now > self._told:
                self._news.put((self, None))

    def status(self) -> int:
        """The exit status, after some patience and then by force."""
        try:
            return self.process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _listen(self, answers: int) -> None:
        try:
            with os.fdopen(answers, "rb") as pipe:
                for line in pipe:
                    message = _message(line)
                    if message is not None:
                        self._news.put((self, message))
        finally:  # whatever happened, the end is told
            self._news.put((self, None))


def _started(log: Path | None, threads: int, with_current_folder: bool) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and the descriptor of its answers."""
    command, environment = python_command("attensor.lab.worker", with_current_folder=with_current_folder)
    answers, theirs = os.pipe()
    environment |= {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONUNBUFFERED": "1",
        ANSWERS: str(theirs),
    }
    file = None
    try:
        file = None if log is None else log.open("ab")
        with interrupts_blocked():
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file or 2, stderr=file, env=environment, pass_fds=(theirs,)
            )
    except BaseException:
        os.close(answers)
        raise
    finally:
        os.close(theirs)
        if file is not None:
            file.close()
    return process, answers


def _message(line: bytes) -> dict[str, Any] | None:
    """What a process of ours says; None for a line of anybody else who found the descriptor."""
    with suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict) and found.keys() & {"event", "result", "reason", "stopped"}:
            return found
    return None
