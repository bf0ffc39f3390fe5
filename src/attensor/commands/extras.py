"""What a command needs beside attensor's own requirements, found out before its work begins."""

from __future__ import annotations

from rich.console import Console

from attensor.errors import MissingExtraError, need

__all__ = ["announce_missing_report"]


def announce_missing_report(console: Console) -> None:
    """Say at once that there will be no page, and what brings it; figures and files come all the same."""
    try:
        need("jinja2", purpose="the HTML report")
    except MissingExtraError as error:
        text = f"There will be no page: {error}\nEverything else is measured, printed and kept as always."
        console.print(text, highlight=False, markup=False, soft_wrap=True)
