"""`attensor compare`."""

from __future__ import annotations

from dataclasses import dataclass

from attensor.compare.config import CompareConfig

__all__ = ["Compare"]


@dataclass(frozen=True)
class Compare(CompareConfig):
    """Train the same small model with each mechanism on your data, measure its cost, and say what to pick."""

    def run(self) -> None:
        """Run or resume the comparison."""
        from attensor.compare.run import compare

        compare(self)
