"""What a comparison found, for people: a table for the terminal and one HTML page that needs nothing else."""

from __future__ import annotations

from attensor.report.page import write_report
from attensor.report.tables import describe, quality_table

__all__ = ["describe", "quality_table", "write_report"]
