"""Numbered pieces of work in processes of their own, with a time limit each: a crash or a hang is a result."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

__all__ = ["CRASHED", "HANGS", "in_processes"]

CRASHED, HANGS = "crashed", "hangs"
_GIB = 2**30
_START = 300.0  # seconds until a process has imported everything, on a busy machine


class _Worker:
    """One process and the piece that it is at; none as long as it is not ready."""

    def __init__(self, work: str, arguments: tuple[Any, ...], memory_gib: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, arguments, memory_gib), daemon=True)
        self.process.start()
        theirs.close()
        self.piece: int | None = None
        self.since = time.monotonic()

    def begin(self, piece: int) -> None:
        self.piece, self.since = piece, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # that it has ended shows when it is asked
            self.pipe.send(piece)

    def answer(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(5)
            return CRASHED, self.process.exitcode

    def end(self) -> None:
        self.process.kill()
        self.process.join(5)
        self.pipe.close()


def in_processes(
    work: str, arguments: tuple[Any, ...], pieces: Sequence[int], *, count: int, limit: float, memory_gib: int = 16
) -> Iterator[tuple[int, Any]]:
    """`work(*arguments, piece)` for every piece, in the order in which they end.

    Args:
        work: `"module:function"`, imported in each process.
        arguments: in front of the piece.
        pieces: numbers.
        count: processes.
        limit: seconds for one piece.
        memory_gib: address space of a process; what wants more fails.
    Yields:
        The piece and its result; `(CRASHED, exit code)` or `(HANGS, seconds)` where there is none.
    Raises:
        RuntimeError: the function cannot be imported.
    """
    left = list(reversed(pieces))
    workers = [_Worker(work, arguments, memory_gib) for _ in range(min(count, len(pieces)))]
    try:
        while workers:
            ready = wait([worker.pipe for worker in workers], timeout=0.2)
            for worker in list(workers):
                is_late = time.monotonic() - worker.since > (_START if worker.piece is None else limit)
                if worker.pipe not in ready and not is_late:
                    continue
                answer = worker.answer() if worker.pipe in ready else (HANGS, limit)
                is_dead = answer is not None and answer[0] in (CRASHED, HANGS)
                if worker.piece is not None:
                    yield worker.piece, answer
                elif is_dead:
                    raise RuntimeError(f"{work} cannot be begun in a process of its own: {answer}.")
                if left and not is_dead:
                    worker.begin(left.pop())
                    continue
                worker.end()
                workers.remove(worker)
                if left:
                    workers.append(_Worker(work, arguments, memory_gib))
    finally:
        for worker in workers:
            worker.end()


def _serve(pipe: Connection, work: str, arguments: tuple[Any, ...], memory_gib: int) -> None:
    """One process: pieces in, results out, until it is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it says when it is over
    resource.setrlimit(resource.RLIMIT_AS, (memory_gib * _GIB, memory_gib * _GIB))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    module, _, name = work.partition(":")
    function = getattr(importlib.import_module(module), name)
    pipe.send(None)
    while True:
        pipe.send(function(*arguments, pipe.recv()))
