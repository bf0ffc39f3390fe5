"""What several plots share: who is drawn, the axis of scores, and the lines of chance and references."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attensor.report.axes import Axis, score_axis
from attensor.report.charts import Chart, Drawing, View
from attensor.report.looks import Identity, identities
from attensor.report.numbers import DASH, is_number
from attensor.report.reading import Mechanism, Results, field, is_accuracy, ordered, score_number

__all__ = [
    "against",
    "by_quality",
    "chart",
    "levels",
    "metric",
    "percent",
    "score_format",
    "scores_axis",
    "vertical_title",
]

Format = Callable[[object], str]
# lines further from the scores than this share of their range would squeeze the curves: they stand at the plot's edge
_NEAR = 0.6


def by_quality(results: Results) -> Iterator[tuple[Mechanism, Identity]]:
    """Mechanisms, best first, each with its looks: labels then read like the table."""
    looks = identities(results["mechanisms"])
    return ((results["mechanisms"][i], looks[i]) for i in ordered(results))


def chart(name: str, title: str, text: str, drawn: Sequence[tuple[Drawing, View] | None]) -> Chart | None:
    """A chart of the views that there are, with the looks of all who are in one of them."""
    shown = [one for one in drawn if one is not None]
    looks = {group: look for drawing, _ in shown for group, look in drawing.looks.items()}
    ordered_looks = sorted(looks.values(), key=lambda look: int(look.group[1:]))
    return Chart(name, title, text, [view for _, view in shown], ordered_looks) if shown else None


def metric(results: Results) -> str:
    """What a score is."""
    return str(field(results, "quality", "metric") or "score")


def vertical_title(results: Results) -> str:
    """`bits per byte, lower is better`."""
    return f"{metric(results)}, {'lower' if field(results, 'quality', 'lower_is_better') else 'higher'} is better"


def percent(value: object) -> str:
    """A share: 0.973 -> `97.3 %`."""
    return f"{round(100 * value, 1):g} %" if is_number(value) else DASH


def score_format(results: Results) -> Format:
    """The text of a score at a tick."""
    return percent if is_accuracy(results) else lambda value: f"{value:g}" if is_number(value) else DASH


def levels(results: Results) -> list[tuple[float, str]]:
    """(score, name) of chance and of every reference."""
    chance = field(results, "quality", "chance")
    found = [(float(chance), f"chance {score_number(results, chance)}")] if is_number(chance) else []
    for row in results.get("references") or ():
        score = field(row, "score")
        if is_number(score):
            found.append((float(score), f"{row.get('name')} {score_number(results, score)}"))
    return found


def scores_axis(results: Results, values: Sequence[float], lines: Sequence[tuple[float, str]]) -> Axis:
    """A vertical axis of scores that shows the values, and the lines that are near them."""
    low, high = min(values), max(values)
    room = _NEAR * (high - low)
    near = [score for score, _ in lines if low - room <= score <= high + room]
    return score_axis([*values, *near], score_format(results))


def against(
    results: Results,
    label: str,
    rows_of: Callable[[Mechanism], Sequence[Mapping[str, Any]]],
    keys: tuple[str, str],
    form: Format,
    axes: tuple[Callable[[list[float]], Axis], Callable[[list[float]], Axis]],
    *,
    quartiles: str | None = None,
    detail: Callable[[Mechanism], str] = lambda mechanism: "",
) -> tuple[Drawing, View] | None:
    """A column of measured rows against another one, both greater than zero.

    Args:
        label: of the view.
        rows_of: the rows of a mechanism; keys: of x and y in them; form: the text of y.
        axes: makers of the two axes.
        quartiles: key of the ends of an error band; detail: behind the name of a mechanism.
    """
    drawing = Drawing()
    across, up = keys
    for mechanism, identity in by_quality(results):
        rows = [r for r in rows_of(mechanism) if is_number(r.get(up)) and r[up] > 0 and is_number(r.get(across))]
        if not rows:
            continue
        x, y = [r[across] for r in rows], [r[up] for r in rows]
        notes = [[f"{label}: {form(b)}", f"{across}: {a:,}"] for a, b in zip(x, y, strict=True)]
        low, high = zip(*(_ends(r.get(quartiles), r[up]) for r in rows), strict=True) if quartiles else ((), ())
        for note, one, other in zip(notes, low, high, strict=False):
            note.append(f"quartiles: {form(one)} to {form(other)}")
        drawing.add(identity, x, y, notes, detail=detail(mechanism), low=low, high=high)
    if not drawing.data:
        return None
    horizontal = axes[0](drawing.x)
    summary = drawing.summary(f"{label.capitalize()} against {horizontal.title}")
    return drawing, View(label, label, drawing.data, horizontal, axes[1](drawing.y), summary=summary)


def _ends(quartiles: object, middle: float) -> tuple[float, float]:
    """The two quartiles, or the middle twice where there are none."""
    match quartiles:
        case [low, high] if is_number(low) and is_number(high):
            return low, high
    return middle, middle
