"""The results for the terminal, and in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from attensor.report.numbers import count, is_number, rounded, size
from attensor.report.rows import best_of, columns, field, ordered

__all__ = ["describe", "quality_table"]


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
    """What was compared, in three lines: the data, the models, the machine."""
    return [_data(results), _plan(results), _machine(results)]


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
