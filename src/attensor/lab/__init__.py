"""Work cut into cells: processes compute them, keep what is finished, resume, stop on request, and show progress."""

from __future__ import annotations

from attensor.lab.cell import Cell as Cell
from attensor.lab.cells import CellError as CellError
from attensor.lab.cells import kept as kept
from attensor.lab.cells import run_cells as run_cells
from attensor.lab.display import Display as Display
from attensor.lab.display import Estimate as Estimate
from attensor.lab.interruption import Interruption as Interruption
from attensor.lab.pool import Outcome as Outcome
from attensor.lab.pool import Pool as Pool
from attensor.lab.reporter import Reporter as Reporter

__all__ = [
    "Cell",
    "CellError",
    "Display",
    "Estimate",
    "Interruption",
    "Outcome",
    "Pool",
    "Reporter",
    "kept",
    "run_cells",
]
