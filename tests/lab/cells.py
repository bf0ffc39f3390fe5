"""Functions that the cells of the tests call in processes of their own."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import torch

from attensor.errors import Stopped
from attensor.lab import Reporter
from attensor.ops._operator import _CONTEXT


def square(value: int) -> dict[str, int]:
    """Its square, and who computed it with how many threads."""
    return {"square": value**2, "process": os.getpid(), "threads": torch.get_num_threads()}


def misbehave(how: str) -> float:
    """Fail in one of the ways there are."""
    if how == "raise":
        raise ValueError("three is too many")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return float("nan")


def overlap(value: int, folder: str) -> bool:
    """Whether another cell ran at the same time."""
    mark = Path(folder) / "busy"
    was_busy = mark.exists()
    mark.touch()
    time.sleep(0.05)
    mark.unlink(missing_ok=True)
    return was_busy


def count_up_to(limit: int) -> int:
    """Slow for 3, at once for others."""
    if limit == 3:
        time.sleep(600)
    return limit


def end(name: str, how: str | None) -> str:
    """End in one of the ways a process can."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "abort":
        os.abort()
    if how == "exit":
        raise SystemExit("deep inside")
    print(f"{name} says so")
    return name


def say(count: int) -> int:
    """Events, one of them at once with the others."""
    for i in range(count):
        Reporter.current().event(number=i)
    return count


def interrupt(whom: int | None) -> str:
    """Send Ctrl-C to a process; work on until asked to stop."""
    reporter = Reporter.current()
    if whom is not None:
        os.kill(whom, signal.SIGINT)
    for _ in range(400):
        time.sleep(0.05)
        if reporter.stop:
            raise Stopped("asked to")
    return "nobody stopped this process"


def kernels() -> str | None:
    """The back-end that operators prefer here."""
    return _CONTEXT.backends[-1] if _CONTEXT.backends else None


def strange(what: str) -> str:
    """Print or write what a pool could take for an answer, or let nothing end: one thing, or several with commas."""
    things = what.split(", ")
    if "descriptors" in things:
        for descriptor in range(3, 20):
            with contextlib.suppress(OSError):
                os.write(descriptor, b'5\nnull\n{"event": 3')
    if "closed" in things:
        os.closerange(3, 4096)  # a test process with many open files hands the pipe down under a high number
    if "child" in things and os.fork() == 0:  # it holds the pipe open
        os.execvp("sleep", ["sleep", "60"])
    if "fork" in things and os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    if "thread" in things:
        threading.Thread(target=time.sleep, args=[600]).start()
    if "exit handler" in things:
        atexit.register(time.sleep, 600)
    if "fork and die" in things:
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        os._exit(3)
    if "deaf" in things:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("deaf", flush=True)
        time.sleep(600)
    print("null")
    return what
