"""A row to compare models with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Reference"]


@dataclass(frozen=True)
class Reference:
    """A row: its name, what it is, and its score; None where it has none, for a `reason`."""

    name: str
    title: str
    score: float | None
    reason: str | None = None

    def row(self) -> dict[str, Any]:
        """As in results.json."""
        return asdict(self)
