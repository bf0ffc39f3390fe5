"""Readings of results.json: a value where there is one, else None, so that pages survive whatever is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attensor.report.numbers import DASH, is_number

__all__ = [
    "Mechanism",
    "Results",
    "at_length",
    "decode_row",
    "field",
    "is_accuracy",
    "is_text",
    "length_name",
    "lengths",
    "nearest",
    "ordered",
    "score_at",
    "score_digits",
    "score_number",
    "score_text",
    "sign",
    "tied_places",
    "trained_length",
]

Results = Mapping[str, Any]
Mechanism = Mapping[str, Any]

_FACTORS = {"score": 1, "score_2x": 2, "score_4x": 4}


def field(mapping: Any, *path: str) -> Any:
    """`mapping[a][b]...`, or None where anything on the way is missing or None."""
    value = mapping
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def is_text(results: Results) -> bool:
    """Whether the data are text: it has lengths and decodes."""
    return bool(field(results, "data", "kind") != "images")


def is_accuracy(results: Results) -> bool:
    """Whether scores are shares of right answers."""
    return bool(field(results, "quality", "metric") == "accuracy")


def sign(results: Results) -> int:
    """1 where the lower score is better, else -1."""
    return 1 if field(results, "quality", "lower_is_better") else -1


def length_name(results: Results) -> str:
    """What a length counts: tokens of text, cells of a grid."""
    return "tokens" if is_text(results) else "cells"


def trained_length(results: Results) -> int | None:
    """Tokens of a training window; cells of an image are no length to choose, so None for images."""
    length = field(results, "plan", "length")
    return int(length) if is_text(results) and is_number(length) else None


def score_digits(results: Results) -> tuple[float, int, str]:
    """The factor, the digits behind the point and the unit of scores."""
    return (100, 1, " %") if is_accuracy(results) else (1, 3, "")


def score_number(results: Results, value: object) -> str:
    """A score: `2.143`, or `97.3 %`."""
    factor, digits, unit = score_digits(results)
    return f"{factor * value:.{digits}f}{unit}" if is_number(value) else DASH


def score_text(results: Results, score: Mapping[str, Any] | None) -> str:
    """A mean with half of its interval: `2.143 ± 0.012`, or `97.3 ± 0.4 %` for an accuracy."""
    factor, digits, unit = score_digits(results)
    mean, half = field(score, "mean"), _half_width(score)
    if not is_number(mean):
        return DASH
    around = f" ± {factor * half:.{digits}f}" if is_number(half) else ""
    return f"{factor * mean:.{digits}f}{around}{unit}"


def _half_width(score: Mapping[str, Any] | None) -> Any:
    low, high = field(score, "low"), field(score, "high")
    return (high - low) / 2 if is_number(low) and is_number(high) else field(score, "spread")


def ordered(results: Results, score: Callable[[Mechanism], Any] | None = None) -> list[int]:
    """Positions of the mechanisms, best first; then those that did not finish; then those without a score."""
    read = score or (lambda mechanism: field(mechanism, "score", "mean"))

    def place(i: int) -> tuple[bool, bool, float]:
        mechanism = results["mechanisms"][i]
        mean = read(mechanism)
        has_score = is_number(mean)
        return (not has_score, mechanism.get("status") != "ok", sign(results) * mean if has_score else 0.0)

    return sorted(range(len(results["mechanisms"])), key=place)


def lengths(results: Results) -> list[int]:
    """The lengths a reader can choose: 1, 2 and 4 times the training length, then those of the cost measurements."""
    trained = trained_length(results)
    mechanisms = results["mechanisms"]
    found = {row["length"] for m in mechanisms for row in m.get("cost") or () if is_number(row.get("length"))} | {
        row["context"] for m in mechanisms for row in m.get("decode") or () if is_number(row.get("context"))
    }
    if trained is None:
        return sorted(found)
    scored = {
        trained * factor for key, factor in _FACTORS.items() for m in mechanisms if is_number(field(m, key, "mean"))
    }
    return sorted(scored | {length for length in found if length >= trained})


def score_at(results: Results, mechanism: Mechanism, length: int | None, rule: str) -> tuple[Any, int | None]:
    """The score read at the longest measured length up to `length`, and that length; `rule` is "tokens" or "time"."""
    trained = trained_length(results)
    if rule == "time":
        return mechanism.get("score_equal_time"), trained
    found = mechanism.get("score"), trained
    if trained is None or length is None:
        return found
    for key, factor in _FACTORS.items():
        if factor * trained <= length and is_number(field(mechanism, key, "mean")):
            found = mechanism[key], factor * trained
    return found


def nearest(rows: Sequence[Mapping[str, Any]] | None, key: str, length: int | None) -> Mapping[str, Any]:
    """The row whose `key` is nearest to `length` by their ratio and at most twice off; else an empty one."""
    sizes = [row for row in rows or () if is_number(row.get(key)) and row[key] > 0]
    if not sizes or length is None:
        return {}
    row = min(sizes, key=lambda one: max(one[key] / length, length / one[key]))
    return row if max(row[key] / length, length / row[key]) <= 2 else {}


def at_length(mechanism: Mechanism, length: int | None) -> Mapping[str, Any]:
    """The cost row at a length."""
    return nearest(mechanism.get("cost"), "length", length)


def decode_row(mechanism: Mechanism, context: int | None) -> Mapping[str, Any]:
    """The decode row of one sequence at a context."""
    rows = [row for row in mechanism.get("decode") or () if row.get("batch", 1) == 1]
    return nearest(rows, "context", context)


def tied_places(results: Results, rule: str) -> dict[str, tuple[int, bool]]:
    """Name -> place and whether it is shared, from the groups of the ranking; empty where it is withheld."""
    ranking = field(results, "ranking")
    if field(ranking, "withheld"):
        return {}
    groups = field(ranking, "groups") if rule == "tokens" else field(ranking, "equal_time", "groups")
    places: dict[str, tuple[int, bool]] = {}
    place = 1
    for group in groups or ():
        places |= {name: (place, len(group) > 1) for name in group}
        place += len(group)
    return places
