"""`attensor show NAME`."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from tyro.conf import Positional

__all__ = ["ShowCard"]


@dataclass(frozen=True)
class ShowCard:
    """Print one card in full: what it is for, what it costs, what it has and how to use it."""

    name: Positional[str]
    """Name of the card, as `attensor list` gives it."""

    def run(self) -> None:
        """Print it.

        Raises:
            ValueError: no card of that name.
        """
        from attensor import listing
        from attensor.catalogue import card

        Console().print(listing.full(card(self.name)))
