"""`attensor merge`: results of several runs as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

__all__ = ["Merge"]


@dataclass(frozen=True)
class Merge:
    """Put runs of the same plan together, from several machines: seeds are pooled, mechanisms stand side by side."""

    runs: Positional[tuple[str, ...]]
    """Folders of runs, or their results.json."""
    out: Annotated[str, arg(metavar="FOLDER")]
    """New folder for results.json, results.csv and the report."""

    def run(self) -> None:
        """Merge them and show what they say together.

        Raises:
            ValueError: they cannot be merged; the message names the difference.
            OSError: the folder cannot be written.
        """
        from attensor.compare.merging import REPORT_FILE, merge
        from attensor.report import quality_table, write_report
        from attensor.report.document import announce_report

        console, result = Console(), merge(*self.runs, out=self.out)
        console.print(quality_table(result.results))
        for sentence in result.answer:
            console.print(f"- {sentence}", highlight=False, markup=False)
        announce_report(console, write_report, result.results, result.path / REPORT_FILE)
        console.print(f"Results: {result.path / 'results.json'}", highlight=False, markup=False, soft_wrap=True)
