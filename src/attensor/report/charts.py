"""The parts that plots are made of, as plain data that `templates/draw.js` draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from attensor.report.axes import Axis
from attensor.report.looks import Identity

__all__ = ["Chart", "Drawing", "Series", "View", "pareto_front"]


@dataclass(frozen=True)
class Series:
    """What one mechanism shows in one view.

    Attributes:
        group: of its `Identity`; empty for a line that belongs to none, such as a Pareto front.
        x, y: the points.
        notes: lines of text at each point, shown to who points at it and listed in the table below the plot.
        kind: "line", "points", "bars" or "steps".
        low, high: at each point, the ends of a band (line) or of an error bar (points); empty: none.
        detail: behind the name of its direct label.
        large: positions of points that are drawn larger.
    """

    group: str
    x: list[float]
    y: list[float]
    notes: list[list[str]] = field(default_factory=list)
    kind: str = "line"
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    detail: str = ""
    large: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class View:
    """One reading of a chart: what is on its axes.

    Attributes:
        label: on the switch between views.
        vertical: what the vertical axis shows; printed above it, where it needs no width.
        data: the series.
        horizontal_axis, vertical_axis: the axes.
        levels: (score, name) of horizontal lines: chance and references.
        summary: the view in one or two sentences, for who cannot see it.
        length, rule: the page's choice for which this view stands; None: for all.
    """

    label: str
    vertical: str
    data: list[Series]
    horizontal_axis: Axis
    vertical_axis: Axis
    levels: list[tuple[float, str]] = field(default_factory=list)
    summary: str = ""
    length: int | None = None
    rule: str | None = None


@dataclass(frozen=True)
class Chart:
    """A plot with one or several views, a title, a sentence on how to read it, and the looks of all its groups."""

    name: str
    title: str
    text: str
    views: list[View]
    looks: list[Identity] = field(default_factory=list)


class Drawing:
    """Series with the looks of their groups, and all values in them, which the axes must show."""

    def __init__(self) -> None:
        self.data: list[Series] = []
        self.looks: dict[str, Identity] = {}
        self.x: list[float] = []
        self.y: list[float] = []

    def add(
        self,
        identity: Identity,
        x: Sequence[float],
        y: Sequence[float],
        notes: Sequence[Sequence[str]],
        *,
        kind: str = "line",
        detail: str = "",
        low: Sequence[float] = (),
        high: Sequence[float] = (),
        large: Sequence[int] = (),
    ) -> None:
        """The series of a mechanism; the arguments are those of `Series`."""
        lines = [list(note) for note in notes]
        ends = list(low), list(high)
        self.data.append(Series(identity.group, list(x), list(y), lines, kind, *ends, detail, list(large)))
        self.looks[identity.group] = identity
        self.x += x
        self.y += y

    def summary(self, what: str, *, is_last: bool = True) -> str:
        """`what`, how many mechanisms are drawn, and which have the least and the greatest value at their end."""
        named = [(series.y[-1 if is_last else 0], series) for series in self.data if series.group and series.y]
        if not named:
            return what
        ends = {way(named, key=lambda one: one[0])[1].group: word for word, way in (("Lowest", min), ("highest", max))}
        text = ", ".join(f"{word} {self.looks[group].label}" for group, word in ends.items())
        count = len(named)
        return f"{what}, {count} mechanism{'' if count == 1 else 's'}. {text if count > 1 else ''}".strip() + (
            " at the right end." if count > 1 and is_last and len(named[0][1].y) > 1 else "." if count > 1 else ""
        )


def pareto_front(points: Sequence[tuple[float, float]], *, lower_is_better: bool) -> list[tuple[float, float]]:
    """The (cost, quality) points that no other point beats in both, by rising cost."""
    sign = 1 if lower_is_better else -1
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * quality < sign * front[-1][1]:
            front.append((cost, quality))
    return front
