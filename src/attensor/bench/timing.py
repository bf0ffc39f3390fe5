"""Timings that survive a busy machine: contestants take turns, and the median of their rounds counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

__all__ = ["Quartiles", "alternate", "own_seconds_of", "paired", "queued_seconds", "seconds_of", "turns"]


class Quartiles(NamedTuple):
    """The median of some times, and the quartiles between which half of them lie."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Quartiles:
        """Those of one or more times, interpolated between the two nearest."""
        if len(times) == 1:
            return cls(times[0], times[0], times[0])
        return cls(*statistics.quantiles(times, n=4, method="inclusive"))


def turns(rounds: Mapping[str, int]) -> Iterator[str]:
    """Whose turn it is: each name as often as it says, all spread evenly over the same time.

    So whatever disturbs the machine for a while disturbs all of them alike. Every second round goes backwards.
    """
    most = max(rounds.values(), default=0)
    for r in range(most):
        names = [name for name, count in rounds.items() if (r + 1) * count // most > r * count // most]
        yield from names if r % 2 == 0 else reversed(names)


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
    seconds: Callable[[Callable[[], Any]], float] | None = None,
) -> dict[str, list[float]]:
    """Time contestants against each other in one run: each round calls every one once.

    Every second round goes through them backwards: a machine that slows down during the run slows all of them.

    Args:
        contestants: name -> function of no arguments.
        rounds: timed calls of each contestant.
        warmup: calls of each contestant before the first timed one.
        lead_in: calls right before each timed one, which finds the cache as it leaves it, not as its predecessor does.
        after_call: told the name after each timed call, outside the time that counts.
        seconds: times a call; `seconds_of` if None.
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
    time_of, found = seconds or seconds_of, dict[str, list[float]]((name, []) for name in contestants)
    for r in range(rounds):
        order = list(contestants.items())
        for name, call in order if r % 2 == 0 else reversed(order):
            for _ in range(lead_in):
                call()
            found[name].append(time_of(call))
            if after_call is not None:
                after_call(name)
    return found


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds that one call takes; work queued on a GPU, before it and by it, is waited for."""
    _wait()
    start = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - start


def own_seconds_of(call: Callable[[], Any]) -> float:
    """`seconds_of` a call, without the time that this thread waited for a processor that another program had.

    Beside a busy program a short call finishes before it has to give way, and a long one does not: that would look like
    a growth with the length.
    """
    queued = queued_seconds()
    seconds = seconds_of(call)
    # the wait may have begun just before the call did
    return max(seconds - (queued_seconds() - queued), 1e-9)


def queued_seconds() -> float:
    """How long this thread has been ready to run while another program had the processor; 0 where nobody counts it."""
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
