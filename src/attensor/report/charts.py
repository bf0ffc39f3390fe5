"""The parts that plots are made of: looks, views, legend keys, traces and axes, as plain data that plotly.js draws."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Chart",
    "Drawing",
    "Identity",
    "Key",
    "View",
    "axis",
    "band",
    "identities",
    "log_axis",
    "pareto_front",
    "plot_text",
    "score_axis",
    "size_axis",
    "trace",
]

Trace = dict[str, Any]

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

# leading digits of ticks, densest first
_TICK_DIGITS = (
    *([digit / 10 for digit in range(10, 100, step)] for step in (1, 2, 5)),
    *(range(1, 10), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,)),
)


@dataclass(frozen=True)
class Identity:
    """How a mechanism looks, the same in every plot and table.

    Attributes: group: a safe identifier; label: the name, shortened; colour; marker: plotly's; glyph: as text."""

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


@dataclass(frozen=True)
class Key:
    """One entry of a legend, `detail` behind its name; a click on it isolates the traces of its group."""

    group: str
    label: str
    colour: str
    glyph: str
    detail: str = ""


@dataclass(frozen=True)
class View:
    """One reading of a chart: what is on its axes.

    Attributes:
        label: on the switch between views.
        vertical: what the vertical axis shows; printed above it, where it needs no width.
        data, layout: plotly's.
        keys: the legend.
    """

    label: str
    vertical: str
    data: list[Trace]
    layout: dict[str, Any]
    keys: list[Key]


@dataclass(frozen=True)
class Chart:
    """A plot with one or several views, a title and a sentence on how to read it."""

    name: str
    title: str
    text: str
    views: list[View]


def trace(identity: Identity, x: Sequence[Any], y: Sequence[Any], **options: Any) -> Trace:
    """A line with markers in the colours of a mechanism; options go over the defaults."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": plot_text(identity.label),
        "legendgroup": identity.group,
        "x": list(x),
        "y": list(y),
        "line": {"color": identity.colour, "width": 2},
        "marker": {"color": identity.colour, "symbol": identity.marker, "size": 8},
        **options,
    }


def band(identity: Identity, x: Sequence[float], low: Sequence[float], high: Sequence[float]) -> Trace:
    """The area between two curves, in the mechanism's colour."""
    options = {"fill": "toself", "fillcolor": identity.colour + "2e", "line": {"width": 0}, "hoverinfo": "skip"}
    return trace(identity, [*x, *reversed(x)], [*low, *reversed(high)], mode="lines", **options)


def axis(title: str = "", **options: Any) -> dict[str, Any]:
    """A linear axis."""
    return {"title": {"text": title}, "automargin": True, "zeroline": False, **options}


def log_axis(values: Sequence[float], text: Callable[[float], str], title: str = "") -> dict[str, Any]:
    """A logarithmic axis with labelled ticks at round numbers: as many as have room."""
    low, high = math.log10(min(values) / 1.1), math.log10(max(values) * 1.1)
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks: list[float] = []
    for digits in _TICK_DIGITS:
        round_numbers = [digit * 10.0**decade for decade in decades for digit in digits]
        ticks = [number for number in round_numbers if low <= math.log10(number) <= high]
        gaps = (math.log10(after / before) for before, after in itertools.pairwise(ticks))
        if min(gaps, default=high) > (high - low) / 11:
            break
    return _ticked(ticks, text, title, low, high)


def size_axis(values: Sequence[float], text: Callable[[float], str], title: str = "") -> dict[str, Any]:
    """A logarithmic axis with at most nine labelled ticks at powers of two: for lengths and bytes."""
    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    every = max(1, math.ceil((high - low) / 8))
    ticks = [2.0**power for power in range(low - low % every, high + every, every)]
    return _ticked(ticks, text, title, math.log10(min(values) / 1.1), math.log10(max(values) * 1.1))


def score_axis(values: Sequence[float], **options: Any) -> dict[str, Any]:
    """A linear axis that shows these values and does not change when only one of them is shown."""
    margin = 0.06 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 1.0
    return axis(range=[min(values) - margin, max(values) + margin], **options)


def _ticked(
    ticks: Sequence[float], text: Callable[[float], str], title: str, low: float, high: float
) -> dict[str, Any]:
    """A logarithmic axis from `low` to `high`, which are powers of ten, and a little beyond."""
    margin = 0.03 * (high - low)
    labels = {"tickvals": list(ticks), "ticktext": [text(tick) for tick in ticks]}
    return axis(title, type="log", range=[low - margin, high + margin], **labels)


class Drawing:
    """Traces with their legend, and all values in them, which the axes must show."""

    def __init__(self) -> None:
        self.data: list[Trace] = []
        self.keys: list[Key] = []
        self.x: list[Any] = []
        self.y: list[Any] = []

    def add(
        self, identity: Identity, x: Sequence[Any], y: Sequence[Any], *lines: str, detail: str = "", **options: Any
    ) -> None:
        """A mechanism's `trace`; `lines`, in plotly's template language, show on hover, `detail` in the legend."""
        self.x += x
        self.y += y
        hover = "<br>".join([f"<b>{plot_text(identity.label)}</b>", *lines]) + "<extra></extra>"
        self.data.append(trace(identity, x, y, hovertemplate=hover, **options))
        self.keys.append(Key(identity.group, identity.label, identity.colour, identity.glyph, detail))

    def view(self, label: str, vertical: str, horizontal_axis: Trace, vertical_axis: Trace) -> View:
        """What was added, as a view."""
        return View(label, vertical, self.data, {"xaxis": horizontal_axis, "yaxis": vertical_axis}, self.keys)


def pareto_front(points: Sequence[tuple[float, float]], *, lower_is_better: bool) -> list[tuple[float, float]]:
    """The (cost, quality) points that no other point beats in both, by rising cost."""
    sign = 1 if lower_is_better else -1
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * quality < sign * front[-1][1]:
            front.append((cost, quality))
    return front
