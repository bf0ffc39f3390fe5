"""What things cost: paired timings, peak memory, and the tables that `attensor bench` prints."""

from __future__ import annotations

from attensor.bench.machine import matmul_rate as matmul_rate
from attensor.bench.machine import processor as processor
from attensor.bench.machine import single_thread as single_thread
from attensor.bench.memory import measure_peak_bytes as measure_peak_bytes
from attensor.bench.timing import paired as paired

__all__ = ["matmul_rate", "measure_peak_bytes", "paired", "processor", "single_thread"]
