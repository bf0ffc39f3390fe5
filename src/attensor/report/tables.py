"""The results as a table for the terminal and in sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from attensor.report.numbers import count, is_number, milliseconds, rounded, short, size
from attensor.report.reading import (
    Mechanism,
    Results,
    decode_row,
    field,
    is_text,
    length_name,
    ordered,
    score_text,
    sign,
    tied_places,
)

__all__ = ["Column", "best_of", "columns", "describe", "quality_table", "status_text"]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: its heading.
        text: the cell of a mechanism.
        rank: a number that is lowest for the best mechanism; None: no best.
    """

    title: str
    text: Callable[[Mechanism], str]
    rank: Callable[[Mechanism], Any] | None = None


def columns(results: Results) -> list[Column]:
    """The columns that suit the data: images have one size and do not decode."""
    metric = str(field(results, "quality", "metric") or "score")
    scores = {"score": metric} | ({"score_4x": "at 4x"} if is_text(results) else {})
    found = [_score_column(results, key, title) for key, title in scores.items()]
    speed = Column(f"{length_name(results)}/s", lambda m: count(m.get("train_tokens_per_second")), _speed)
    return [*found, speed, *(_decode_columns(results) if is_text(results) else [])]


def _score_column(results: Results, key: str, title: str) -> Column:
    def rank(mechanism: Mechanism) -> float | None:
        mean = field(mechanism, key, "mean")
        return sign(results) * mean if is_number(mean) else None

    return Column(title, lambda mechanism: score_text(results, mechanism.get(key)), rank)


def best_of(column: Column, mechanisms: Sequence[Mechanism]) -> set[int]:
    """Positions of the best cells, none where fewer than two mechanisms have one or all are equal."""
    if column.rank is None:
        return set()
    ranks = {i: rank for i, m in enumerate(mechanisms) if is_number(rank := column.rank(m))}
    if len(ranks) < 2 or len(set(ranks.values())) == 1:
        return set()
    best = min(ranks.values())
    return {i for i, rank in ranks.items() if rank == best}


def _decode_columns(results: Results) -> list[Column]:
    contexts = [
        row["context"] for m in results["mechanisms"] for row in m.get("decode") or () if is_number(row.get("context"))
    ]
    if not contexts:
        return []
    longest = max(contexts)

    def column(title: str, key: str, form: Callable[[object], str]) -> Column:
        def value(mechanism: Mechanism) -> Any:
            row = decode_row(mechanism, longest)
            return row.get(key) if row.get("context") == longest else None

        return Column(f"{title} at {short(longest)}", lambda mechanism: form(value(mechanism)), value)

    return [column("state", "state_bytes", size), column("decode", "ms_per_token", milliseconds)]


def _speed(mechanism: Mechanism) -> float | None:
    value = mechanism.get("train_tokens_per_second")
    return -value if is_number(value) else None


def quality_table(results: Results) -> Table:
    """The mechanisms, best first, with the best of each column in bold; fits into 80 columns.

    Args:
        results: what `results.json` holds.
    Returns:
        a table for `rich.console.Console.print`; below it why a ranking is withheld and why a mechanism has no result.
        Names are never read as markup, and those that cannot be told apart share a place.
    """
    mechanisms = [results["mechanisms"][i] for i in ordered(results)]
    withheld = field(results, "ranking", "withheld")
    below = [f"No ranking: {withheld}"] if withheld else []
    below += [f"{m.get('name')}: {status_text(m)}" for m in mechanisms if m.get("status") != "ok"]
    caption = Text("\n".join(below), style="red") if below else None
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), caption=caption, caption_justify="left")
    places = tied_places(results, "tokens")
    if places:
        table.add_column("", justify="right", no_wrap=True)
    table.add_column("mechanism", overflow="fold", vertical="bottom")
    shown = columns(results)
    best = [set() if withheld else best_of(column, mechanisms) for column in shown]
    for column in shown:
        table.add_column(column.title.replace(" at ", "\nat "), justify="right", no_wrap=True)
    for i, mechanism in enumerate(mechanisms):
        name = str(mechanism.get("name"))
        cells = [Text(place_text(places.get(name)))] if places else []
        cells.append(Text(name))
        for position, (column, chosen) in enumerate(zip(shown, best, strict=True)):
            # the interval stands behind the first score alone: three of them would need more than 80 columns
            text = column.text(mechanism) if position == 0 else column.text(mechanism).partition(" ±")[0]
            cells.append(Text(text, style="bold" if i in chosen else ""))
        table.add_row(*cells)
    return table


def place_text(place: tuple[int, bool] | None) -> str:
    """`1`, or `1=` for a place that several share; empty without a place."""
    return "" if place is None else f"{place[0]}{'=' if place[1] else ''}"


def status_text(mechanism: Mapping[str, Any]) -> str:
    """`ok`, or what went wrong and why."""
    status, reason = str(mechanism.get("status")), mechanism.get("reason")
    return f"{status}: {reason}" if reason else status


def describe(results: Results) -> list[str]:
    """What was compared, in lines: the data and what was left out of it, the models, the machine."""
    return [_data(results), *(field(results, "data", "notes") or ()), _plan(results), _machine(results)]


def _data(results: Results) -> str:
    data = field(results, "data") or {}
    sides = ("train", "selection", "test")
    if data.get("kind") == "images":
        shape = data.get("image_shape") or ()
        pixels = " x ".join(map(str, shape[1:]))
        colour = "grey" if list(shape[:1]) == [1] else "colour"
        train, selection, test = (count(data.get(f"{side}_images")) for side in sides)
        return (
            f"{data.get('name')}: {train} {colour} images of {pixels} pixels in {len(data.get('classes') or ())} "
            f"classes to train on, {selection} to choose learning rates, {test} to test"
        )
    amounts = [f"{size(data.get(f'{side}_bytes'))} in {count(data.get(f'{side}_files'))}" for side in sides]
    return (
        f"{data.get('name')}: {amounts[0]} files of text to train on, {amounts[1]} to choose learning rates, "
        f"{amounts[2]} to test"
    )


def _plan(results: Results) -> str:
    plan = field(results, "plan") or {}
    unit = "tokens" if is_text(results) else "pixels a side"
    seeds = len(plan.get("seeds") or ())
    budget = plan.get("budget_seconds")
    minutes = f" in {rounded(budget / 60)} minutes for all" if is_number(budget) else ""
    return (
        f"{plan.get('size')} model: {count(plan.get('num_layers'))} layers of {count(plan.get('hidden_size'))} with "
        f"{count(plan.get('num_heads'))} heads; batches of {count(plan.get('batch_size'))} x "
        f"{count(plan.get('length'))} {unit}; {seeds} seed{'' if seeds == 1 else 's'}; "
        f"{count(plan.get('steps'))} steps each{minutes}"
    )


def _machine(results: Results) -> str:
    machine = field(results, "machine") or {}
    threads = machine.get("threads")
    return (
        f"{machine.get('processor')}, {count(machine.get('cores'))} cores, {count(threads)} "
        f"thread{'' if threads == 1 else 's'} a process, {machine.get('device')} in {machine.get('dtype')}, "
        f"torch {results.get('torch')}, attensor {results.get('attensor')}"
    )
