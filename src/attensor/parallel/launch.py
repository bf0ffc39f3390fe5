"""Ranks on this machine without `torchrun`: for tests, measurements and trying things out."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

from attensor.errors import RankError
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked

__all__ = ["on_ranks"]


@checked
def on_ranks(function: Callable[..., Any], ranks: int, *arguments: Any, timeout: float = 300.0) -> list[Any]:
    """Call a function in so many new processes of one thread each, which are a gloo group.

    No process outlives this one, nor the call.

    Args:
        function: of a module, so that a new process can import it; called with `arguments`, which are pickled as is
            what it returns.
        ranks: how many.
        arguments: the same for all.
        timeout: seconds that all may take, and that one call waits for another rank.
    Returns:
        What each rank returned, in their order.
    Raises:
        RankError: a rank failed, ended early or was not ready in time; says of each of them which and why.
    """
    check_range("on_ranks", 1, ranks=ranks)
    check_range("on_ranks", above=0, timeout=timeout)
    context, found = multiprocessing.get_context("spawn"), dict[int, Any]()
    with tempfile.TemporaryDirectory(prefix="attensor-ranks-") as folder:
        started, reasons = [], dict[int, str]()
        try:
            for rank in range(ranks):
                here, there = context.Pipe()
                task = (there, f"file://{folder}/store", rank, ranks, timeout, function, arguments)
                process = context.Process(target=_serve, args=task, daemon=True)
                process.start()
                there.close()
                started.append((process, here))
            _collect(started, timeout, found, reasons)
        finally:
            for process, here in started:
                here.close()
                process.kill()
                process.join()
    if reasons:
        raise RankError("; ".join(f"rank {rank} of {ranks} {reasons[rank]}" for rank in sorted(reasons)))
    return [found[rank] for rank in range(ranks)]


def _collect(
    started: Sequence[tuple[Any, Any]], timeout: float, found: dict[int, Any], reasons: dict[int, str]
) -> None:
    """What each process and its connection give, by rank, or the reason why it gives nothing."""
    deadline = time.monotonic() + timeout
    waiting: dict[Any, int] = {here: rank for rank, (_, here) in enumerate(started)}
    while waiting and (ready := wait(list(waiting), max(deadline - time.monotonic(), 0.0))):
        for connection in ready:
            rank = waiting.pop(connection)
            _take(connection, started[rank][0], rank, found, reasons)
    reasons |= dict.fromkeys(waiting.values(), f"was not ready after {timeout:g} s")


def _take(connection: Any, process: Any, rank: int, found: dict[int, Any], reasons: dict[int, str]) -> None:
    try:
        is_done, value = connection.recv()
    except (EOFError, OSError):
        process.join(1.0)
        reasons[rank] = f"ended with exit code {process.exitcode}"
        return
    if is_done:
        found[rank] = value
    else:
        reasons[rank] = f"failed: {value}"


def _serve(
    connection: Connection,
    store: str,
    rank: int,
    ranks: int,
    timeout: float,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    torch.set_num_threads(1)
    # all ranks are here, whatever the machine is called elsewhere
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if os.path.exists("/sys/class/net/lo") else "lo0")
    try:
        limit = datetime.timedelta(seconds=timeout)
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=limit)
        connection.send((True, function(*arguments)))
    except Exception as error:  # whatever it is, who asked is told
        traceback.print_exc()
        connection.send((False, f"{type(error).__name__}: {error}"))
        return  # which ends the wait of others for this rank
    # others may still be calling; who asked ends all
    time.sleep(timeout)


def _end_with(connection: Connection) -> None:
    """End when whoever asked is gone, however that came."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os._exit(1)
