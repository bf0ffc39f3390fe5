"""Numbers as people read them. What is missing or not finite is a dash."""

from __future__ import annotations

import math
from typing import TypeGuard

__all__ = ["DASH", "compact", "count", "is_number", "milliseconds", "rounded", "seconds", "short", "size"]

DASH = "\u2013"


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def count(value: object) -> str:
    """12345.6 -> `12,346`."""
    return f"{value:,.0f}" if is_number(value) else DASH


def rounded(value: object, digits: int = 3) -> str:
    """A number with at most so many significant digits and no exponent: 0.04123 -> `0.0412`, 1234.5 -> `1,230`."""
    if not is_number(value):
        return DASH
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    text = f"{round(value, decimals):,.{max(decimals, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def milliseconds(value: object) -> str:
    """Milliseconds with their unit: 0.0123 -> `12.3 µs`, 4321 -> `4.32 s`."""
    if not is_number(value):
        return DASH
    for factor, unit in ((1000, "s"), (1, "ms")):
        if abs(value) >= factor:
            return f"{rounded(value / factor)} {unit}"
    return f"{rounded(value * 1000)} µs"


def size(value: object) -> str:
    """Bytes: 33280 -> `32.5 KiB`."""
    if not is_number(value):
        return DASH
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(value) >= 1024**power:
            return f"{rounded(value / 1024**power)} {unit}"
    return f"{value:.0f} B"


def short(value: object) -> str:
    """A length: 16384 -> `16k`, 1000 -> `1000`, 1048576 -> `1M`."""
    if not is_number(value):
        return DASH
    for factor, unit in ((2**20, "M"), (2**10, "k")):
        if value >= factor and value % factor == 0:
            return f"{value / factor:.0f}{unit}"
    return f"{value:.0f}"


def compact(value: object) -> str:
    """A count in three digits: 1500000 -> `1.5M`."""
    for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if is_number(value) and value >= factor:
            return f"{rounded(value / factor)}{unit}"
    return rounded(value)


def seconds(value: object) -> str:
    """Seconds with their unit."""
    return milliseconds(1000 * value) if is_number(value) else DASH
