"""A table of measurements: shown in the terminal, or kept as a Markdown file with the machine it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

__all__ = ["Table", "publish"]


@dataclass
class Table:
    """Rows of text under a title.

    Attributes:
        title: what was measured.
        columns: heading of each column; the first is aligned left, the others right.
        rows: cells, already formatted.
        note: what a reader must know to read the figures.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    note: str = ""

    def rich(self) -> RichTable:
        """The table for a terminal."""
        table = RichTable(title=self.title, title_justify="left", caption=self.note, caption_justify="left")
        for i, column in enumerate(self.columns):
            # figures without a name are worth less than narrow columns
            table.add_column(column, justify="right" if i else "left", no_wrap=not i)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """The table as Markdown under a heading of the second level."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (self.columns, rule, *self.rows)]
        return f"## {self.title}\n\n" + "\n".join(lines) + (f"\n\n{self.note}\n" if self.note else "\n")


def publish(
    name: str,
    tables: Sequence[Table],
    machine: Mapping[str, str],
    *,
    save: bool,
    folder: Path,
    console: Console,
    device: str = "cpu",
    data: Mapping[str, Any] | None = None,
) -> None:
    """Print the tables and, when asked, write `<folder>/<date>-<name>-<device>.md`, with data also a `.json`.

    Args:
        name: of the benchmark, for the file.
        tables: what was measured.
        machine: from `attensor.bench.machine.describe`, taken while measuring.
        save: also write the file.
        folder: where benchmark results are kept; made when missing.
        console: where to print.
        device: what was measured on.
        data: the same figures for programs; JSON-able.
    """
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), highlight=False)
    for table in tables:
        console.print(table.rich())
    if save:
        facts = "\n".join(f"- {key}: {value}" for key, value in machine.items())
        body = "\n".join(table.markdown() for table in tables)
        elsewhere = "\n## GPU\n\nNot yet measured.\n" if device == "cpu" else ""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{machine['date']}-{name}-{device}.md"
        path.write_text(f"# attensor bench {name}\n\n{facts}\n\n{body}{elsewhere}")
        if data is not None:
            path.with_suffix(".json").write_text(json.dumps({"machine": dict(machine), **data}, indent=1) + "\n")
        console.print(f"written to {path}")
