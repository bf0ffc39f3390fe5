"""Functions that the cells of the tests call in processes of their own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch


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
