"""Numbers for people."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["enumerated", "readable_count", "readable_length"]


def readable_count(count: float) -> str:
    """`1.5 million`, `120 thousand`."""
    for factor, word in ((1e9, " billion"), (1e6, " million"), (1e4, " thousand")):
        if count >= factor:
            return f"{count / (1e3 if factor == 1e4 else factor):.3g}{word}"
    return f"{count:.0f}"


def readable_length(length: int) -> str:
    """`4k` for 4096, else the number."""
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def enumerated(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
