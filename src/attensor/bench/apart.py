"""First calls in a process of their own: a clean peak, and no harm to the benchmark.

The process is ended where a call exceeds its limit, and may use half of the machine's memory, so that who asks for more
fails instead of the machine.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, cast

import torch

from attensor.bench.memory import measure_peak_bytes

__all__ = ["Apart", "FirstCall", "LeftOut", "brief"]

_READY = "ready"
# Calls that take less, in seconds, are made twice, for a peak without what the first loaded and keeps.
BRIEF = 1.0


class LeftOut(Exception):
    """The reason why there is no contestant of a problem here."""


class FirstCall(NamedTuple):
    """Peak memory of a call beyond what was held before, or the reason why there was none; perhaps that it is slow."""

    peak_bytes: int | None = None
    reason: str = ""
    is_slow: bool = False


class Apart:
    """The process, started when it is first needed and again when it had to be ended."""

    def __init__(self) -> None:
        self._process: Any = None
        self._connection: Any = None

    def first_call(
        self, build: Callable[[Any], Any], problem: Any, mode: str, *, compiles: bool = False, limit: float = math.inf
    ) -> FirstCall:
        """Measure one call; on a GPU, where PyTorch counts by itself, in this process.

        Args:
            build: problem -> contestant; pickled by its name.
            problem: a dataclass.
            mode: as `Contestant.call` takes it.
            compiles: call it once before.
            limit: seconds that the call may take.
        """
        # a copy without the tensors made so far
        task = partial(_call, build, replace(problem), mode, compiles, limit)
        if problem.device != "cpu":
            return task(lambda: None)
        self._start()
        try:
            self._connection.send((task, torch.get_num_threads()))
            found = self._connection.recv()
            if found == _READY:
                if not self._connection.poll(None if limit == math.inf else limit + BRIEF):
                    self.close()
                    return _slow(limit)
                found = self._connection.recv()
            return cast("FirstCall", found)
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            self.close()
            return FirstCall(reason=f"its process ended with {code} (-9: out of memory)")

    def close(self, patience: float = 0.0) -> None:
        """End the process, if there is one; what it holds it gives back only if it may end by itself.

        Args:
            patience: seconds that it may take to do so.
        """
        if self._process is not None:
            self._connection.close()
            self._process.join(patience)
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, there = context.Pipe()
            self._process = context.Process(target=_serve, args=(there,), daemon=True)
            self._process.start()
            there.close()


def brief(error: Exception) -> str:
    """The beginning of a message in one line."""
    message = " ".join(str(error).split())[:160]
    return message if isinstance(error, LeftOut) else f"{type(error).__name__}: {message}"


def _serve(connection: Connection) -> None:
    """Measure one contestant after the other until the other side is gone, which alone answers Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    if sys.platform == "linux":
        import resource

        half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        resource.setrlimit(resource.RLIMIT_DATA, (half, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    with contextlib.suppress(EOFError, OSError):
        while True:
            task, threads = connection.recv()
            torch.set_num_threads(threads)
            connection.send(task(lambda: connection.send(_READY)))


def _call(
    build: Callable[[Any], Any], problem: Any, mode: str, compiles: bool, limit: float, ready: Callable[[], None]
) -> FirstCall:
    try:
        call = build(problem).call(mode)
        if compiles or problem.device != "cpu":
            call()
        ready()
        start = time.perf_counter()
        peak = measure_peak_bytes(call, device=problem.device)
        took = time.perf_counter() - start
        if took > limit:
            return _slow(limit)
        return FirstCall(peak if took > BRIEF else measure_peak_bytes(call, device=problem.device))
    except Exception as error:  # out of memory, or a size that the peer refuses
        return FirstCall(reason=brief(error))


def _slow(limit: float) -> FirstCall:
    return FirstCall(reason=f"a call takes more than {limit:.3g} s", is_slow=True)
