"""What things cost: paired timings, peak memory, and the tables that `attensor bench` prints.

The parts load when they are first used: the command line reads the options of a benchmark without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attensor.bench.machine import matmul_rate as matmul_rate
    from attensor.bench.machine import processor as processor
    from attensor.bench.machine import single_thread as single_thread
    from attensor.bench.memory import measure_peak_bytes as measure_peak_bytes
    from attensor.bench.timing import paired as paired

__all__ = ["matmul_rate", "measure_peak_bytes", "paired", "processor", "single_thread"]

_HOMES = {
    "matmul_rate": "machine",
    "measure_peak_bytes": "memory",
    "paired": "timing",
    "processor": "machine",
    "single_thread": "machine",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"attensor.bench.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'attensor.bench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
