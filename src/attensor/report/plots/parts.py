"""What several plots share: who is drawn, the axis of scores, and the lines of chance and references."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attensor.report.axes import Axis, score_axis
from attensor.report.charts import Chart, Drawing, View
from attensor.report.looks import Identity, identities
from attensor.report.numbers import DASH, is_number, short
from attensor.report.reading import Mechanism, Results, field, is_accuracy, ordered, score_number

__all__ = [
    "Measured",
    "against",
    "by_quality",
    "chart",
    "crossings",
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
_MOST_CROSSINGS = 5


@dataclass(frozen=True)
class Measured:
    """A column of measured rows, and how it is drawn against another one.

    Attributes:
        label: on the switch between views; vertical: what the vertical axis shows.
        table: "cost", "decode" or "generation"; across, up: keys of x and y in its rows.
        form: the text of y; scale: makes the vertical axis; horizontal: makes the other one.
        is_wanted: which rows.
        quartiles: key of the ends of the band; exponent: key of the fitted power that stands behind a name.
    """

    label: str
    vertical: str
    table: str
    across: str
    up: str
    form: Format
    scale: Callable[..., Axis]
    horizontal: Callable[[list[float]], Axis]
    is_wanted: Callable[[Mapping[str, Any]], bool] = lambda row: True
    quartiles: str = ""
    exponent: str = ""

    def is_whole(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has both numbers, above zero as logarithms need."""
        x, y = row.get(self.across), row.get(self.up)
        return is_number(x) and x > 0 and is_number(y) and y > 0


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


def crossings(results: Results, of: str) -> str:
    """Where the order of two mechanisms in "quality" or "cost" turns round, as a sentence; empty where it does not."""
    found = [
        f"{row.get('b')} overtakes {row.get('a')} at about {short(round(row['length']))}"
        for row in results.get("crossings") or ()
        if is_number(field(row, "length")) and row.get("of", "quality") == of
    ]
    more = f"; and {len(found) - _MOST_CROSSINGS} more" if len(found) > _MOST_CROSSINGS else ""
    return f" {'; '.join(found[:_MOST_CROSSINGS])}{more}." if found else ""


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


def against(results: Results, what: Measured) -> tuple[Drawing, View] | None:
    """A measured column against another one, both greater than zero; None where nobody has it."""
    drawing = Drawing()
    for mechanism, identity in by_quality(results):
        rows = [row for row in mechanism.get(what.table) or () if what.is_wanted(row) and what.is_whole(row)]
        if not rows:
            continue
        rows.sort(key=lambda row: float(row[what.across]))
        x, y = [row[what.across] for row in rows], [row[what.up] for row in rows]
        notes = [[f"{what.label}: {what.form(b)}", f"{what.across}: {a:,}"] for a, b in zip(x, y, strict=True)]
        low, high = [], []
        if what.quartiles:
            low, high = map(list, zip(*(_ends(row.get(what.quartiles), row[what.up]) for row in rows), strict=True))
        for note, one, other in zip(notes, low, high, strict=False):
            note.append(f"quartiles: {what.form(one)} to {what.form(other)}")
        exponent = field(mechanism, "exponent", what.exponent) if what.exponent else None
        detail = f"n^{exponent:.2f}" if is_number(exponent) else ""
        drawing.add(identity, x, y, notes, detail=detail, low=low, high=high)
    if not drawing.data:
        return None
    axes = what.horizontal(drawing.x), what.scale(drawing.y, what.form)
    summary = drawing.summary(f"{what.vertical.capitalize()} against {axes[0].title}")
    return drawing, View(what.label, what.vertical, drawing.data, *axes, summary=summary)


def _ends(quartiles: object, middle: float) -> tuple[float, float]:
    """The two quartiles, or the middle twice where there are none."""
    match quartiles:
        case [low, high] if is_number(low) and is_number(high):
            return low, high
    return middle, middle
