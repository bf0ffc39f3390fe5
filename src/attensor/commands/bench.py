"""The options common to all of `attensor bench`; a bench adds its sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

__all__ = ["BenchOptions"]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What every benchmark can be asked for, and its run; `quick_look` is what `--quick` sets."""

    name: ClassVar[str]
    quick_look: ClassVar[dict[str, Any]]

    peers: tuple[str, ...] = ("all",)
    """Names of contestants as the first table gives them, or all that are installed; ours is always among them."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cpu (float32) or cuda (bfloat16)."""
    threads: int = 1
    """Threads for PyTorch on a CPU."""
    rounds: int = 5
    """Timed calls of each contestant; the median counts."""
    budget: float = 2.0
    """Seconds that one call of a peer may take; a slower one is left out there and at larger sizes."""
    quick: bool = False
    """Few sizes, in about a minute or two: it indicates and does not decide."""
    save: bool = False
    """Also write the tables and figures to benchmarks/results/<date>-<benchmark>-<device>.md and .json."""

    def run(self) -> int:
        """Measure, print and optionally save."""
        from attensor.bench.hold import hold

        return hold(self.name, replace(self, **self.quick_look) if self.quick else self)
