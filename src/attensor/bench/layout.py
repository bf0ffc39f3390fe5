"""A table of text that is kept whole as Markdown, and laid out so that a narrow terminal cuts no name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

__all__ = ["Table"]

_GAP = 2  # of which one is the table's own


@dataclass
class Table:
    """Rows of text under a title.

    Attributes:
        title: what was measured.
        columns: heading of each column; the first is aligned left, the others right.
        rows: cells, already formatted.
        note: what a reader must know to read the figures.
        groups: columns that a terminal shows as headings over the rows that share them.
        joined: columns that a terminal shows as one, which may be wrapped.
        spare: headings of columns that a terminal which is too narrow does without, the first of them first.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    note: str = ""
    groups: Sequence[int] = ()
    joined: Sequence[int] = ()
    spare: Sequence[str] = ()

    def rich(self, width: int = 80) -> Group:
        """The table for a terminal.

        Args:
            width: of the terminal in characters.
        """
        shown = self._shown(width)
        table = RichTable(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
        widths = {i: max(self._width(i), len(self.columns[i])) for i in shown}
        if _total(widths.values()) > width:
            widths = {i: self._width(i) for i in shown}
        for i in shown:
            table.add_column(self.columns[i], justify="right" if i else "left", width=widths[i])
        if self.joined:
            table.add_column(", ".join(self.columns[i] for i in self.joined))
        for heading, rows in self._grouped().items():
            if heading:
                table.add_row(Text(heading, style="bold"))
            for row in rows:
                cells = [("  " if heading and not i else "") + row[i] for i in shown]
                joined = ["; ".join(row[i] for i in self.joined)] if self.joined else []
                table.add_row(*map(Text, [*cells, *joined]))
        absent = [c for i, c in enumerate(self.columns) if i not in {*shown, *self.groups, *self.joined}]
        less = f"A wider terminal, or --save, also has: {', '.join(absent)}." if absent else ""
        notes = [Text(text) for text in (self.note, less) if text]
        return Group(Text(f"\n{self.title}", style="bold"), table, *notes)

    def markdown(self) -> str:
        """The table as Markdown under a heading of the second level."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (self.columns, rule, *self.rows)]
        return f"## {self.title}\n\n" + "\n".join(lines) + (f"\n\n{self.note}\n" if self.note else "\n")

    def _shown(self, width: int) -> list[int]:
        """Columns of their own: as many as fit."""
        shown = [i for i in range(len(self.columns)) if i not in {*self.groups, *self.joined}]
        for heading in self.spare:
            if _total(self._width(i) for i in shown) <= width:
                break
            shown = [i for i in shown if self.columns[i] != heading]
        return shown

    def _width(self, column: int) -> int:
        """That of its widest cell, or of the longest word of its heading, which is wrapped."""
        indent = 2 if self.groups and not column else 0
        words = self.columns[column].split()
        cells = [" " * indent + row[column] for row in self.rows]
        headings = [] if column else [heading for heading in self._grouped() if heading]
        return max(map(len, (*words, *cells, *headings)))

    def _grouped(self) -> dict[str, list[Sequence[str]]]:
        grouped: dict[str, list[Sequence[str]]] = {}
        for row in self.rows:
            grouped.setdefault(", ".join(row[i] for i in self.groups), []).append(row)
        return grouped


def _total(widths: Iterable[int]) -> int:
    return sum(width + _GAP for width in widths) - _GAP
