"""Timings that survive a busy machine: contestants take turns, and the median of their rounds counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["alternate", "paired"]


def paired(contestants: Mapping[str, Callable[[], Any]], rounds: int = 5, warmup: int = 1) -> dict[str, float]:
    """Name -> median seconds of a call; `alternate` says how they are taken. Quote ratios, never the seconds."""
    seconds = alternate(contestants, rounds, warmup)
    return {name: statistics.median(times) for name, times in seconds.items()}


def alternate(
    contestants: Mapping[str, Callable[[], Any]],
    rounds: int = 5,
    warmup: int = 1,
    *,
    lead_in: int = 0,
    after_call: Callable[[str], None] | None = None,
) -> dict[str, list[float]]:
    """Time contestants against each other in one run: each round calls every one once.

    Every second round goes through them backwards, so that a machine that slows down during the run slows all
    of them.

    Args:
        contestants: name -> function of no arguments.
        rounds: timed calls of each contestant.
        warmup: calls of each contestant before the first timed one.
        lead_in: calls right before each timed one, so that it finds the cache as it leaves it and not as its
            predecessor does.
        after_call: told the name after each timed call, outside the time that counts.
    Returns:
        name -> seconds of its call in each round; work queued on a GPU is waited for.
    Raises:
        ValueError: `rounds` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"alternate: rounds must be at least 1, got {rounds}.")
    for call in contestants.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for r in range(rounds):
        order = list(contestants.items())
        for name, call in order if r % 2 == 0 else reversed(order):
            for _ in range(lead_in):
                call()
            seconds[name].append(_seconds(call))
            if after_call is not None:
                after_call(name)
    return seconds


def _seconds(call: Callable[[], Any]) -> float:
    _wait()
    start = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
