"""Numbers and lists in sentences."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["enumerated", "gap_text", "margin_of", "plural", "readable_count", "score_text"]

_MOST_NAMES = 8


def readable_count(count: float) -> str:
    """`1.5 million`, `120 thousand`."""
    for factor, word in ((1e9, " billion"), (1e6, " million"), (1e4, " thousand")):
        if count >= factor:
            return f"{count / (1e3 if factor == 1e4 else factor):.3g}{word}"
    return f"{count:.0f}"


def enumerated(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`, `a, b, c, d and 9 more`; nothing of nothing."""
    every = list(names) or [""]
    if len(every) > _MOST_NAMES:
        every = [*every[: _MOST_NAMES - 2], f"{len(every) - _MOST_NAMES + 2} more"]
    *first, last = every
    return f"{', '.join(first)} and {last}" if first else last


def plural(count: int, noun: str, many: str | None = None) -> str:
    """`1 seed`, `3 seeds`, `2 entries`."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"


def margin_of(metric: str) -> float:
    """How much worse a score may be where cost decides: 0.02 bits per byte, 1 % of right answers."""
    return 0.01 if metric == "accuracy" else 0.02


def score_text(value: float, metric: str) -> str:
    """`2.143 bits per byte`, `97.3 % right`."""
    return f"{100 * value:.1f} % right" if metric == "accuracy" else f"{value:.3f} {metric}"


def gap_text(value: float, metric: str) -> str:
    """A difference of scores: `0.02 bits per byte`, `1 percentage point`."""
    if metric != "accuracy":
        return f"{value:.2g} {metric}"
    points = f"{100 * value:.2g}"
    return f"{points} percentage point{'' if points == '1' else 's'}"
