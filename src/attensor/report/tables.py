"""The results as a table for the terminal and in sentences; the columns and their order are those of the page too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from attensor.report.numbers import DASH, count, is_number, milliseconds, rounded, short, size

__all__ = ["Column", "best_of", "columns", "describe", "field", "length_name", "ordered", "quality_table", "score_text"]

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


def quality_table(results: Mapping[str, Any]) -> Table:
    """The mechanisms, best first, with the best of each column in bold; fits into 80 columns.

    Args:
        results: what `results.json` holds.
    Returns:
        a table for `rich.console.Console.print`, with the reasons of failures below it; names are never read as markup.
    """
    mechanisms = [results["mechanisms"][i] for i in ordered(results)]
    brief = [column for column in columns(results) if column.is_brief]
    failures = [f"{m.get('name')}: {status_text(m)}" for m in mechanisms if m.get("status") != "ok"]
    caption = Text("\n".join(failures), style="red")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), caption=caption if failures else None, caption_justify="left")
    table.add_column("mechanism", overflow="fold", vertical="bottom")
    best = [best_of(column, mechanisms) for column in brief]
    for column in brief:
        table.add_column(column.title.replace(" at ", "\nat "), justify="right", no_wrap=True)
    for i, mechanism in enumerate(mechanisms):
        cells = []
        for position, (column, chosen) in enumerate(zip(brief, best, strict=True)):
            # the spread stands behind the first score alone: three of them would need more than 80 columns
            text = column.text(mechanism) if position == 0 else column.text(mechanism).partition(" ±")[0]
            cells.append(Text(text, style="bold" if i in chosen else ""))
        table.add_row(Text(str(mechanism.get("name"))), *cells)
    return table


def status_text(mechanism: Mapping[str, Any]) -> str:
    """`ok`, or what went wrong and why."""
    status, reason = str(mechanism.get("status")), mechanism.get("reason")
    return f"{status}: {reason}" if reason else status


def describe(results: Mapping[str, Any]) -> list[str]:
    """What was compared, in lines: the data and what was left out of it, the models, the machine."""
    return [_data(results), *(field(results, "data", "notes") or ()), _plan(results), _machine(results)]


def _data(results: Mapping[str, Any]) -> str:
    data = field(results, "data") or {}
    if data.get("kind") == "images":
        shape = data.get("image_shape") or ()
        pixels = " x ".join(map(str, shape[1:]))
        colour = "grey" if shape[:1] == [1] else "colour"
        return (
            f"{data.get('name')}: {count(data.get('train_images'))} {colour} images of {pixels} pixels in "
            f"{len(data.get('classes') or ())} classes to train on, {count(data.get('held_out_images'))} held out"
        )
    return (
        f"{data.get('name')}: {size(data.get('train_bytes'))} of text in {count(data.get('train_files'))} files to "
        f"train on, {size(data.get('held_out_bytes'))} in {count(data.get('held_out_files'))} held out"
    )


def _plan(results: Mapping[str, Any]) -> str:
    plan = field(results, "plan") or {}
    steps, budget = plan.get("steps"), plan.get("budget_seconds")
    if is_number(steps):
        effort = f"{count(steps)} steps each"
    elif is_number(budget):
        effort = f"{rounded(budget / 60)} minutes shared equally"
    else:
        effort = "an equal share each"
    unit = "pixels a side" if field(results, "data", "kind") == "images" else "tokens"
    seeds = len(plan.get("seeds") or ())
    return (
        f"{plan.get('size')} model: {count(plan.get('num_layers'))} layers of {count(plan.get('hidden_size'))} with "
        f"{count(plan.get('num_heads'))} heads; batches of {count(plan.get('batch_size'))} x "
        f"{count(plan.get('length'))} {unit}; {seeds} seed{'' if seeds == 1 else 's'}; {effort}"
    )


def _machine(results: Mapping[str, Any]) -> str:
    machine = field(results, "machine") or {}
    threads = machine.get("threads")
    return (
        f"{machine.get('processor')}, {count(machine.get('cores'))} cores, {count(threads)} "
        f"thread{'' if threads == 1 else 's'} a process, {machine.get('device')} in {machine.get('dtype')}, "
        f"torch {results.get('torch')}, attensor {results.get('attensor')}"
    )
