"""What is needed once for all mechanisms of a run: the counts that they correct, and the reference rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attensor.compare.artefacts import References
from attensor.compare.counts import COUNTS_FILE
from attensor.compare.plan import Plan
from attensor.compare.tasks import open_task
from attensor.files import write_json
from attensor.lab import Cell, Interruption, Outcome, Pool

__all__ = ["REFERENCES_FILE", "prepare", "reference_rows"]

REFERENCES_FILE = "references.json"


def prepare(run: Path, plan: Plan, interruption: Interruption) -> None:
    """Make what is not there yet, each in a process; where one fails, its log and `failed-NAME.json` say why."""
    cells = []
    for name, file in (("counts", COUNTS_FILE), ("references", REFERENCES_FILE)):
        if not (run / file).exists() and (name != "counts" or plan.counts):
            (run / f"failed-{name}.json").unlink(missing_ok=True)
            function = {"counts": counts, "references": references}[name]
            cells.append(Cell.of(function, {"run": str(run.absolute())}, log=run / f"{name}.log"))

    def ended(cell: Cell, outcome: Outcome) -> None:
        if outcome.reason is not None:
            write_json(run / f"failed-{cell.name}.json", {"reason": outcome.reason})

    Pool(interruption).run(cells, at_once=min(2, plan.jobs), on_end=ended)


def counts(run: str) -> None:
    """The cell that counts the training text."""
    open_task(Plan.load(Path(run)), Path(run)).prepare()


def references(run: str) -> None:
    """The cell that scores the reference rows."""
    folder = Path(run)
    rows = open_task(Plan.load(folder)).references()
    References([reference.row() for reference in rows]).save(folder / REFERENCES_FILE)


def reference_rows(run: Path) -> list[dict[str, Any]]:
    """What is there of them now."""
    found = References.load(run / REFERENCES_FILE)
    return [] if found is None else found.rows
