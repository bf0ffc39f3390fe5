"""The verdict cards and the trust strip of the page, with a line for every choice of the reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attensor.report.choices import RULES, Choice, choices, default_choice, length_text, places, ranked
from attensor.report.numbers import count, is_number, milliseconds, rounded, size
from attensor.report.reading import (
    Mechanism,
    Results,
    at_length,
    decode_row,
    field,
    is_text,
    score_at,
    score_number,
    score_text,
)

__all__ = ["trust", "verdicts"]

_TITLES = {"quality": "Best quality", "long": "Long context", "decode": "Cheapest decoding"}
_MOST_NAMES = 6


def verdicts(results: Results) -> list[dict[str, Any]]:
    """The cases of the verdict, each with what the rows say under every choice."""
    found = []
    for case in results.get("verdict") or ():
        if not isinstance(case, Mapping):
            continue
        kind = str(case.get("case"))
        lines = {choice.key: _line(results, kind, case, choice) for choice in choices(results)}
        first = default_choice(results).key
        score, price, sentence = case.get("score"), str(case.get("price") or ""), str(case.get("sentence") or "")
        found.append(
            {
                "case": kind,
                "title": _TITLES.get(kind, kind),
                "use": case.get("use"),
                "among": [name for name in case.get("among") or () if name != case.get("use")],
                "score": f"{score_number(results, score)} {field(results, 'quality', 'metric')}"
                if is_number(score)
                else "",
                "where": length_text(results, case.get("length")) if is_text(results) or kind != "quality" else "",
                "price": "" if price in sentence else price,
                "confidence": str(case.get("confidence") or "not decided"),
                "code": case.get("code") or "",
                "sentence": _without_heading(sentence),
                "line": lines.get(first, ""),
                "lines": lines,
            }
        )
    return found


def _without_heading(sentence: str) -> str:
    """A sentence without the case it speaks of, which stands above it: what is before the first colon."""
    heading, colon, rest = sentence.partition(": ")
    is_heading = colon and any(
        heading.startswith(title) for title in ("Best quality", "Long context", "Cheapest decod")
    )
    return rest[:1].upper() + rest[1:] if is_heading else sentence


def _line(results: Results, kind: str, case: Mapping[str, Any], choice: Choice) -> str:
    """What the rows say at another choice than that of the case; empty where it is the same or nothing was measured."""
    if kind == "quality":
        is_same = choice.rule == "tokens" and case.get("length") in (choice.length, None)
        return "" if is_same or (not is_text(results) and choice.rule == "tokens") else _quality(results, choice)
    if choice.length == case.get("length") or choice.length is None:
        return ""
    where = length_text(results, choice.length)
    rows = results["mechanisms"]
    if kind == "long":
        costs = [(m, at_length(m, choice.length)) for m in rows]
        return _least(
            costs, "forward_backward_ms", "forward_backward_quartiles", f"At {where} one layer trains fastest"
        )
    if kind == "decode":
        costs = [(m, decode_row(m, choice.length)) for m in rows]
        states = [(row["state_bytes"], m) for m, row in costs if is_number(row.get("state_bytes"))]
        least = min((state for state, _ in states), default=None)
        names = [str(m.get("name")) for state, m in states if state == least]
        kept = f" Least state: {_names(names)}, {size(least)} a layer." if states else ""
        return _least(costs, "ms_per_token", "quartiles", f"At {where} of context one layer decodes fastest") + kept
    return ""


def _quality(results: Results, choice: Choice) -> str:
    rows, placed = ranked(results, choice), places(results, choice)
    if not rows or not placed:
        return ""
    first = [row for row in rows if placed.get(str(row.get("name")), (0, False))[0] == 1] or rows[:1]
    score, length = score_at(results, first[0], choice.length, choice.rule)
    where = f" at {length_text(results, length)}" if length and is_text(results) else ""
    line = f"Under {RULES[choice.rule]}, read{where}: {first[0].get('name')}, {score_text(results, score)}"
    others = _names([str(row.get("name")) for row in first[1:]])
    line += f"; not told apart from it: {others}." if others else "."
    changes = field(results, "ranking", "equal_time", "changes_order")
    if choice.rule == "time" and isinstance(changes, bool):
        line += " The order is not that at equal tokens." if changes else " The order is that at equal tokens."
    return line


def _least(costs: Sequence[tuple[Mechanism, Mapping[str, Any]]], key: str, quartiles: str, start: str) -> str:
    """`start: NAME, 1.2 ms`, with those whose quartiles overlap with its."""
    measured = [(m, row) for m, row in costs if is_number(row.get(key))]
    if not measured:
        return ""
    best, row = min(measured, key=lambda one: float(one[1][key]))
    end = (row.get(quartiles) or [row[key]])[-1]
    near = [
        str(m.get("name"))
        for m, other in measured
        if m is not best and (other.get(quartiles) or [other[key]])[0] <= end
    ]
    same = f"; within the noise of it: {_names(near)}" if near else ""
    return f"{start}: {best.get('name')}, {milliseconds(row[key])}{same}."


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def trust(results: Results) -> list[tuple[str, str, bool]]:
    """(label, what was done, is it a reason for doubt) of what decides how far the results can be trusted."""
    found = field(results, "trust") or {}
    ranking = field(results, "ranking") or {}
    load, edges, chance = found.get("load"), found.get("edges") or (), found.get("chance")
    smallest = ranking.get("smallest_p")
    seeds = found.get("seeds")
    rows = [
        ("rule", found.get("rule"), False),
        ("steps", count(found.get("steps")) if is_number(found.get("steps")) else None, False),
        ("seeds", f"{count(seeds)}, paired" if is_number(seeds) else None, is_number(seeds) and seeds < 3),
        ("load", rounded(load) if is_number(load) else None, is_number(load) and load > 1.5),
        ("rates at the edge", _names([str(name) for name in edges]) or "none", bool(edges)),
        ("test", found.get("test_size"), False),
        ("chance", score_number(results, chance) if is_number(chance) else None, False),
        ("least p by seeds alone", rounded(smallest, 2) if is_number(smallest) else None, False),
    ]
    return [(label, str(text), bool(doubt)) for label, text, doubt in rows if text]
