"""The columns of the quality table, shared by the terminal and the page, and the order of the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attensor.report.numbers import DASH, count, is_number, milliseconds, rounded, short, size

__all__ = ["Column", "best_of", "columns", "field", "length_name", "ordered", "score_text"]

Mechanism = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: its heading.
        text: the cell of a mechanism.
        rank: a number that is lowest for the best mechanism; None: no best.
        note: what the heading means, where it is not plain.
        is_brief: also in the terminal.
    """

    title: str
    text: Callable[[Mechanism], str]
    rank: Callable[[Mechanism], Any] | None = None
    note: str = ""
    is_brief: bool = True


def field(mapping: Mapping[str, Any] | None, *path: str) -> Any:
    """`mapping[a][b]...`, or None where anything on the way is missing or None."""
    value: Any = mapping
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def score_text(results: Mapping[str, Any], score: Mapping[str, Any] | None) -> str:
    """A mean with its spread: `2.143 ± 0.012`, or `97.3 ± 0.4 %` for an accuracy."""
    mean, spread = field(score, "mean"), field(score, "spread")
    if not is_number(mean):
        return DASH
    factor, digits, unit = (100, 1, " %") if field(results, "quality", "metric") == "accuracy" else (1, 3, "")
    around = f" ± {factor * spread:.{digits}f}" if is_number(spread) else ""
    return f"{factor * mean:.{digits}f}{around}{unit}"


def ordered(results: Mapping[str, Any]) -> list[int]:
    """Positions of the mechanisms, best first; then those that did not finish; then those without a score."""
    sign = 1 if field(results, "quality", "lower_is_better") else -1

    def place(i: int) -> tuple[bool, bool, float]:
        mechanism = results["mechanisms"][i]
        mean = field(mechanism, "score", "mean")
        has_score = is_number(mean)
        return (not has_score, mechanism.get("status") != "ok", sign * mean if has_score else 0.0)

    return sorted(range(len(results["mechanisms"])), key=place)


def length_name(results: Mapping[str, Any]) -> str:
    """What a length counts: tokens of text, cells of a grid."""
    return "cells" if field(results, "data", "kind") == "images" else "tokens"


def columns(results: Mapping[str, Any]) -> list[Column]:
    """The columns that suit the data: images have one size and do not decode."""
    sign = 1 if field(results, "quality", "lower_is_better") else -1

    def score(key: str, title: str, note: str = "") -> Column:
        def rank(mechanism: Mechanism) -> float | None:
            mean = field(mechanism, key, "mean")
            return sign * mean if is_number(mean) else None

        return Column(title, lambda m: score_text(results, m.get(key)), rank, note)

    metric = str(field(results, "quality", "metric") or "score")
    is_text = field(results, "data", "kind") != "images"
    tokens = length_name(results)
    found = [score("score", metric, "held out; mean over the seeds ± half the range")]
    if is_text:
        found += [
            score("score_2x", "at 2x", "the same model on windows of twice the training length"),
            score("score_4x", "at 4x", "the same model on windows of four times the training length"),
        ]
    found += [
        Column("learning rate", lambda m: rounded(m.get("learning_rate"), 2), None, "the best in the pilots", False),
        Column("parameters", lambda m: count(m.get("parameters")), is_brief=False),
        Column("steps", lambda m: count(m.get("steps")), note="for each seed", is_brief=False),
        Column(f"{tokens}/s", lambda m: count(m.get("train_tokens_per_second")), _speed, "in training"),
    ]
    return found + (_decode_columns(results) if is_text else [])


def best_of(column: Column, mechanisms: Sequence[Mechanism]) -> set[int]:
    """Positions of the best cells, none where fewer than two mechanisms have one or all are equal."""
    if column.rank is None:
        return set()
    ranks = {i: rank for i, m in enumerate(mechanisms) if is_number(rank := column.rank(m))}
    if len(ranks) < 2 or len(set(ranks.values())) == 1:
        return set()
    best = min(ranks.values())
    return {i for i, rank in ranks.items() if rank == best}


def _decode_columns(results: Mapping[str, Any]) -> list[Column]:
    contexts = sorted(
        {
            row["context"]
            for m in results["mechanisms"]
            for row in m.get("decode") or ()
            if is_number(row.get("context"))
        }
    )
    if not contexts:
        return []
    length = field(results, "plan", "length")
    near = min(contexts, key=lambda c: abs(math.log(c / length))) if is_number(length) else contexts[0]

    def column(title: str, key: str, context: int, form: Callable[[object], str], note: str) -> Column:
        def value(mechanism: Mechanism) -> Any:
            return next((row.get(key) for row in mechanism.get("decode") or () if row.get("context") == context), None)

        text = f"{title} at {short(context)}"
        return Column(text, lambda m: form(value(m)), value, note.format(context), is_brief=context == contexts[-1])

    kept, time = "bytes one layer keeps to decode after {} tokens", "time of one layer for one more token after {}"
    states = [column("state", "state_bytes", c, size, f"{kept}, batch 1") for c in sorted({near, contexts[-1]})]
    return [*states, column("decode", "ms_per_token", contexts[-1], milliseconds, f"{time}, batch 1")]


def _speed(mechanism: Mechanism) -> float | None:
    value = mechanism.get("train_tokens_per_second")
    return -value if is_number(value) else None
