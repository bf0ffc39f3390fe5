"""Measurements of several mechanisms that take turns, from size to size, so that a busy moment hits all alike."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from attensor.bench.memory import return_freed_memory
from attensor.bench.timing import queued_seconds, turns
from attensor.errors import Stopped
from attensor.lab.reason import is_out_of_memory, reason

__all__ = ["Contender", "in_turns", "rounds_within"]

Size = tuple[int, ...]


class Contender(ABC):
    """One mechanism in a measurement.

    Attributes:
        name: of the mechanism.
        rows: what has been found, one JSON object a size, those of an earlier run included.
        stopped: why there are not more, or None.
        failure: what it raised, in one line, after which it takes no further part; or None.
        spent: seconds that it has had a processor, of `limit`; `spent_last` of them at the last size.
    """

    def __init__(self, name: str, rows: Sequence[dict[str, Any]], limit: float) -> None:
        self.name, self.rows, self.limit = name, list(rows), limit
        self.stopped: str | None = None
        self.failure: str | None = None
        self.spent = self.spent_last = 0.0

    @abstractmethod
    def facts(self, size: Size) -> dict[str, int]:
        """The fields of a row that say its size."""

    @abstractmethod
    def why_not(self, size: Size) -> str | None:
        """Why this size would take too long or too much memory, by the growth so far; None when it would not."""

    @abstractmethod
    def prepare(self, size: Size) -> int:
        """Warm up and take what needs one call only; returns the rounds to be timed."""

    @abstractmethod
    def turn(self) -> None:
        """Time one round at the size prepared last."""

    @abstractmethod
    def finish(self) -> None:
        """Make a row of the rounds."""

    def has(self, size: Size) -> bool:
        """Whether there is a row of this size."""
        return any(self.facts(size).items() <= row.items() for row in self.rows)

    def name_of(self, size: Size) -> str:
        """The size, for people."""
        return "x".join(map(str, size))

    def fail(self, size: Size, error: Exception | SystemExit) -> None:
        """Take no further part; what has been found stays."""
        self.failure = reason(error)  # and not the error, which holds whatever its frames hold
        if self.rows:
            what = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
            last = max(next(iter(row.values())) for row in self.rows)
            self.stopped = f"stopped at {last}: {self.name_of(size)} failed ({what})"


def in_turns(
    contenders: Sequence[Contender],
    sizes: Sequence[Size],
    *,
    on_turn: Callable[[Contender], object] = lambda contender: None,
    on_size: Callable[[Contender, Size], object] = lambda contender, size: None,
    on_row: Callable[[Contender], object] = lambda contender: None,
) -> None:
    """Measure size by size: first each warms up alone, then they go round, and each that has a row keeps it.

    Args:
        contenders: what fails costs its own further rows; `failure` and `stopped` say why.
        sizes: ascending; those that a contender has a row of are left out.
        on_turn: told whose turn comes, before anything of it is called; may raise `Stopped`.
        on_size: told before a mechanism is measured at a size.
        on_row: told after each row.
    Raises:
        Stopped: by `on_turn`; rows of the sizes before are there.
    """
    there = {contender.name: contender for contender in contenders}
    for size in sizes:
        return_freed_memory()
        rounds: dict[str, int] = {}
        # all are asked before one of them takes memory, which the process keeps
        for contender in [contender for contender in contenders if _takes_part(contender, size)]:
            on_size(contender, size)
            before = contender.spent
            rounds[contender.name] = _guarded(contender, size, partial(contender.prepare, size), on_turn) or 0
            contender.spent_last = contender.spent - before
        for name in turns(rounds):
            before = there[name].spent
            _guarded(there[name], size, there[name].turn, on_turn)
            there[name].spent_last += there[name].spent - before
        for name, count in rounds.items():
            if count:
                _guarded(there[name], size, there[name].finish, on_turn)
                if there[name].failure is None:
                    on_row(there[name])


def _takes_part(contender: Contender, size: Size) -> bool:
    if contender.failure is not None or contender.has(size):
        return False
    why_not = contender.why_not(size)
    contender.stopped = contender.stopped or why_not
    return why_not is None


def _guarded(contender: Contender, size: Size, act: Callable[[], Any], on_turn: Callable[[Contender], object]) -> Any:
    """What `act` returns; None when the mechanism fails or has failed."""
    if contender.failure is not None:
        return None
    on_turn(contender)
    started = _own_clock()
    try:
        return act()
    except Stopped:
        raise
    except (Exception, SystemExit) as error:  # a mechanism may be the user's, and fail in any way
        contender.fail(size, error)
        return None
    finally:
        contender.spent += _own_clock() - started


def _own_clock() -> float:
    """Seconds that pass while this thread has a processor or sleeps: under load a mechanism may spend as many."""
    return time.monotonic() - queued_seconds()


def rounds_within(seconds: float, once: float, *, fewest: int, most: int) -> int:
    """So many rounds of `once` seconds as fit, but neither fewer nor more than that."""
    return max(fewest, min(most, int(seconds / max(once, 1e-9))))
