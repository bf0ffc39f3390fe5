"""Costs: paired timings, peak memory, contests, and the tables that `attensor bench` prints."""

from __future__ import annotations

from attensor.bench.machine import processor
from attensor.bench.memory import measure_peak_bytes
from attensor.bench.timing import paired

__all__ = ["measure_peak_bytes", "paired", "processor"]
