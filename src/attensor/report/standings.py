"""The table of results on the page: a cell for each mechanism, column and choice, as data that a script shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attensor.report.choices import Choice, choices, default_choice, places
from attensor.report.looks import identities
from attensor.report.numbers import count, is_number, milliseconds, rounded, short, size
from attensor.report.reading import (
    Mechanism,
    Results,
    at_length,
    decode_row,
    field,
    is_text,
    length_name,
    ordered,
    score_at,
    score_number,
    score_text,
    sign,
    trained_length,
)
from attensor.report.tables import place_text, status_text

__all__ = ["standings"]

Read = Callable[[Mechanism, Choice], tuple[str, Any]]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: in the CSV; title: of a choice; note: what the heading means.
        read: a cell's text and its number.
        best: -1 where the least number is best, 1 the greatest, 0 none.
        turns: whether the cells depend on the choice.
    """

    key: str
    title: Callable[[Choice], str]
    note: str
    read: Read
    best: int = 0
    turns: bool = False


def standings(results: Results) -> dict[str, Any]:
    """Columns, rows and reference rows; every cell is `[text, number or null, is it best]` under a choice's key."""
    every, first = choices(results), default_choice(results)
    order = ordered(results)
    looks = identities(results["mechanisms"])
    mechanisms = [results["mechanisms"][i] for i in order]
    shown = [
        _cells(results, column, mechanisms, every if column.turns else [first]) for column in _columns(results, every)
    ]
    rows = [_row(results, looks[i], i) for i in order]
    lower = sign(results) > 0
    return {"columns": shown, "rows": rows, "references": _references(results), "first": first.key, "lower": lower}


def _row(results: Results, look: Any, position: int) -> dict[str, Any]:
    mechanism = results["mechanisms"][position]
    name, title = str(mechanism.get("name")), mechanism.get("title")
    is_ok = mechanism.get("status") == "ok"
    return {
        "look": look,
        "name": name,
        "title": title if title != name else None,
        "paper": mechanism.get("paper"),
        "has_score": is_number(field(mechanism, "score", "mean")),
        "status": "" if is_ok else status_text(mechanism),
        "missing": mechanism.get("missing") or {},
    }


def _cells(results: Results, column: Column, mechanisms: list[Mechanism], shown: list[Choice]) -> dict[str, Any]:
    cells, titles = {}, {}
    withheld = field(results, "ranking", "withheld") and column.key == "score"
    for choice in shown:
        read = [column.read(mechanism, choice) for mechanism in mechanisms]
        numbers = [number for _, number in read if is_number(number)]
        best = (min if column.best < 0 else max)(numbers) if column.best and len(set(numbers)) > 1 else None
        key = choice.key if column.turns else ""
        cells[key] = [[text, number, best is not None and number == best and not withheld] for text, number in read]
        titles[key] = column.title(choice)
    return {"key": column.key, "titles": titles, "note": column.note, "cells": cells, "turns": column.turns}


def _references(results: Results) -> list[dict[str, Any]]:
    rows = [row for row in results.get("references") or () if isinstance(row, dict)]
    scored = [row for row in rows if is_number(row.get("score"))]
    scored.sort(key=lambda row: sign(results) * row["score"])
    return [
        {
            "name": row.get("name"),
            "title": row.get("title"),
            "score": row.get("score"),
            "text": score_number(results, row.get("score")),
            "reason": row.get("reason"),
        }
        for row in [*scored, *(row for row in rows if row not in scored)]
    ]


def _columns(results: Results, every: list[Choice]) -> list[Column]:
    metric = str(field(results, "quality", "metric") or "score")

    def place(mechanism: Mechanism, choice: Choice) -> tuple[str, Any]:
        at = placed[choice.key].get(str(mechanism.get("name")))
        return place_text(at), at and at[0]

    def score(mechanism: Mechanism, choice: Choice) -> tuple[str, Any]:
        found, _ = score_at(results, mechanism, choice.length, choice.rule)
        return score_text(results, found), field(found, "mean")

    def score_title(choice: Choice) -> str:
        at = [score_at(results, m, choice.length, choice.rule)[1] for m in results["mechanisms"]]
        longest = max((length for length in at if length), default=None)
        where = f" at {short(longest)}" if is_number(longest) and trained_length(results) else ""
        return f"{metric}{where}" + (", equal time" if choice.rule == "time" else "")

    placed = {choice.key: places(results, choice) for choice in every}
    notes = {
        "place": "By quality. Mechanisms with the same place and = cannot be told apart: by the stated test at the "
        "training length, by overlapping intervals elsewhere.",
        "score": "On the test side, which is read once; mean over the seeds ± half of the 95 % interval from seeds "
        "and test set. Beyond 4x the training length it is the score at 4x.",
    }
    better = -sign(results)
    columns = [
        Column("place", lambda choice: "place", notes["place"], place, turns=True),
        Column("score", score_title, notes["score"], score, better, turns=True),
        *_training_columns(results),
        *_cost_columns(),
        *(_decode_columns() if is_text(results) else []),
        *_model_columns(),
    ]
    first = every[0] if every else default_choice(results)
    has = [any(cell[1] is not None for cell in _all(results, column, every or [first])) for column in columns]
    return [column for column, is_there in zip(columns, has, strict=True) if is_there or column.key == "score"]


def _all(results: Results, column: Column, every: list[Choice]) -> list[tuple[str, Any]]:
    return [column.read(m, choice) for m in results["mechanisms"] for choice in (every if column.turns else every[:1])]


def _training_columns(results: Results) -> list[Column]:
    def speedup(mechanism: Mechanism, choice: Choice) -> tuple[str, Any]:
        found = field(results, "speedup", str(mechanism.get("name")))
        factor, low, high = (field(found, key) for key in ("factor", "low", "high"))
        # without an upper end the baseline's curve ends before that score, at the latest at 4 times its length
        at_least = "≥ " if is_number(factor) and factor >= 4 and high is None else ""
        text = f"{at_least}{rounded(factor, 2)}x" if is_number(factor) else rounded(None)
        above = f"to {rounded(high, 2)}" if is_number(high) else "and more"
        around = f" ({rounded(low, 2)} {above})" if is_number(low) and not (at_least and low >= 4) else ""
        return text + (around if is_number(factor) else ""), factor

    tokens = length_name(results)
    return [
        Column(
            "speedup",
            lambda choice: "speed-up",
            "How much longer softmax attention must train to reach the same score, from its fitted curve, with the "
            "95 % interval.",
            speedup,
            1,
        ),
        Column(
            "train_tokens_per_second",
            lambda choice: f"{tokens}/s",
            f"{tokens.capitalize()} a second in training, the whole model, corrected for the load of the machine.",
            lambda m, choice: (count(m.get("train_tokens_per_second")), m.get("train_tokens_per_second")),
            1,
        ),
    ]


def _model_columns() -> list[Column]:
    def rate(mechanism: Mechanism, choice: Choice) -> tuple[str, Any]:
        edge = " (edge)" if mechanism.get("at_edge") else ""
        return rounded(mechanism.get("learning_rate"), 2) + edge, mechanism.get("learning_rate")

    return [
        Column(
            "learning_rate",
            lambda choice: "rate",
            "The learning rate that was best on the selection side. “edge”: the best of those tried was the last.",
            rate,
        ),
        Column(
            "parameters",
            lambda choice: "parameters",
            "Of the whole model; the width of the MLP balances them within 2 %.",
            lambda m, choice: (count(m.get("parameters")), m.get("parameters")),
        ),
    ]


def _cost_columns() -> list[Column]:
    def column(key: str, title: str, form: Callable[[object], str], note: str) -> Column:
        def read(mechanism: Mechanism, choice: Choice) -> tuple[str, Any]:
            value = at_length(mechanism, choice.length).get(key)
            return form(value), value

        return Column(key, lambda choice: f"{title} at {short(choice.length)}", note, read, -1, turns=True)

    one = "of one layer, one sequence, at the nearest measured length; the median of interleaved rounds."
    return [
        column("forward_backward_ms", "training step", milliseconds, f"Forward and backward pass {one}"),
        column("forward_ms", "forward", milliseconds, f"Forward pass {one}"),
        column("peak_bytes", "peak memory", size, f"Peak memory beyond the weights {one}"),
    ]


def _decode_columns() -> list[Column]:
    def column(key: str, title: str, form: Callable[[object], str], note: str) -> Column:
        def read(mechanism: Mechanism, choice: Choice) -> tuple[str, Any]:
            value = decode_row(mechanism, choice.length).get(key)
            return form(value), value

        return Column(key, lambda choice: f"{title} at {short(choice.length)}", note, read, -1, turns=True)

    return [
        column("state_bytes", "state", size, "Bytes that one layer keeps to decode one sequence after this context."),
        column("ms_per_token", "decode", milliseconds, "Time of one layer for one more token after this context."),
    ]
