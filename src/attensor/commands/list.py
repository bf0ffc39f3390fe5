"""`attensor list`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rich.console import Console

__all__ = ["ListCards"]


@dataclass(frozen=True)
class ListCards:
    """List the cards of the catalogue."""

    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Print them."""
        from attensor import listing

        if self.json:
            sys.stdout.write(listing.as_json())
        else:
            Console().print(listing.overview())
