"""Measured times with their quartiles: who is faster outside the noise, at which length, and where that changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

__all__ = [
    "Reading",
    "Readings",
    "cheapest",
    "decode_states",
    "decode_times",
    "layer_memory",
    "layer_times",
    "overtaken",
]

Row = Mapping[str, Any]
# how far a time without quartiles may be off
_UNKNOWN = 1.25


@dataclass(frozen=True)
class Reading:
    """A median with its quartiles."""

    value: float
    low: float
    high: float

    def is_below(self, other: Reading) -> bool:
        """Whether the quartiles do not overlap, this one's being the smaller."""
        return self.high < other.low

    def ratio(self, other: Reading) -> float | None:
        """Times the other one; None within the noise."""
        return self.value / other.value if self.is_below(other) or other.is_below(self) else None


Readings = dict[int, Reading]


def layer_times(row: Row) -> Readings:
    """Forward and backward milliseconds of one layer by length."""
    return _readings(row.get("cost"), "length", "forward_backward_ms", "forward_backward_quartiles")


def layer_memory(row: Row) -> Readings:
    """Peak bytes of a training step of one layer by length, which have no noise."""
    return _exact(row.get("cost"), "length", "peak_bytes")


def decode_times(row: Row) -> Readings:
    """Milliseconds of one more token of one sequence by context."""
    return _readings(_single(row), "context", "ms_per_token", "quartiles")


def decode_states(row: Row) -> Readings:
    """Bytes of the decode state of one sequence by context, which have no noise."""
    return _exact(_single(row), "context", "state_bytes")


def _single(row: Row) -> list[Row]:
    return [line for line in row.get("decode") or [] if line.get("batch", 1) == 1]


def _readings(table: Iterable[Row] | None, length: str, key: str, quartiles: str) -> Readings:
    found = {}
    for line in table or []:
        value = line.get(key)
        if value is not None:
            low, high = line.get(quartiles) or (value / _UNKNOWN, value * _UNKNOWN)
            found[int(line[length])] = Reading(value, low, high)
    return found


def _exact(table: Iterable[Row] | None, length: str, key: str) -> Readings:
    return {int(line[length]): Reading(*[line[key]] * 3) for line in table or [] if line.get(key) is not None}


def overtaken(one: Readings, other: Readings) -> tuple[int, bool] | None:
    """The first length from which the other order holds, and whether `one` is the faster one before.

    None where the order does not change outside the noise.
    """
    shared = sorted(one.keys() & other.keys())
    told = [(n, one[n].is_below(other[n])) for n in shared if one[n].ratio(other[n]) is not None]
    for (_, before), (length, after) in pairwise(told):
        if before != after:
            return length, before
    return None


def cheapest(times: Mapping[str, Readings], names: Sequence[str], length: int) -> list[str]:
    """The fastest of these at this length and those within the noise of it, fastest first."""
    there = sorted((name for name in names if length in times[name]), key=lambda name: times[name][length].value)
    return [name for name in there if not times[there[0]][length].is_below(times[name][length])]
