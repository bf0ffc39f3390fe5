"""How a mechanism looks: one colour and one marker, the same in every plot and table."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Identity", "identities", "plot_text"]

_LONGEST_LABEL = 48

# Okabe and Ito's colours, told apart by all kinds of colour vision; their yellow and black made visible on both themes
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#a08c00", "#8a8f98")
# one marker fewer than colours: the pair repeats only after 56 mechanisms
_MARKERS = (
    ("circle", "●"),
    ("square", "■"),
    ("diamond", "◆"),
    ("triangle-up", "▲"),
    ("cross", "✚"),
    ("star", "★"),
    ("triangle-down", "▼"),
)


@dataclass(frozen=True)
class Identity:
    """Attributes: group: a safe identifier; label: the name, shortened; colour; marker: plotly's; glyph: as text."""

    group: str
    label: str
    colour: str
    marker: str
    glyph: str


def identities(mechanisms: Sequence[Mapping[str, Any]]) -> list[Identity]:
    """One for each mechanism, by position, so that the order of a table does not change them."""
    found = []
    for i, mechanism in enumerate(mechanisms):
        name = str(mechanism.get("name"))
        label = name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"
        found.append(Identity(f"m{i}", label, _COLOURS[i % len(_COLOURS)], *_MARKERS[i % len(_MARKERS)]))
    return found


def plot_text(text: str) -> str:
    """Text that plotly shows literally: it reads `<b>` as markup and `%{x}` as a placeholder."""
    return html.escape(text).replace("%", "&#37;")
