"""Work cut into cells: processes compute them, keep what is finished, resume, stop on request, and show progress."""

from __future__ import annotations

from attensor.lab.cells import CellError, kept, run_cells
from attensor.lab.display import Display, Estimate
from attensor.lab.interruption import Interruption
from attensor.lab.pool import Cell, Outcome, Pool
from attensor.lab.reporter import Reporter

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
