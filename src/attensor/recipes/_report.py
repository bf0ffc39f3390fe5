"""The page of a recipe: pass marks, figures, pictures and charts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attensor.recipes._outcome import RULE, count_marks
from attensor.recipes._recipe import Chart
from attensor.report import axes
from attensor.report import charts as plots
from attensor.report.axes import Axis
from attensor.report.document import write_document
from attensor.report.looks import Identity, identities
from attensor.report.numbers import rounded, short

__all__ = ["write_report"]


def write_report(found: Mapping[str, Any], path: Path) -> None:
    """Write the page.

    Args:
        found: what `verdict.json` holds.
        path: the file to write; it appears whole or not at all.
    Raises:
        MissingExtraError: jinja2 is not installed.
        OSError: the file cannot be written.
    Cost: 50 KB, the data of the charts, and the pictures.
    """
    charts = [Chart(**chart) for chart in found["charts"]]
    looks = looks_of(charts)
    drawn = [one for i, chart in enumerate(charts) if (one := drawing(f"chart-{i}", chart, looks)).views]
    minutes = rounded(found["seconds"] / 60, 2)
    said = {"counted": count_marks([check["mark"] for check in found["checks"]]), "rule": RULE.replace("**", "")}
    pictures = found.get("pictures", ())
    write_document(
        path, "attensor.recipes:recipe.html", found=found, minutes=minutes, charts=drawn, pictures=pictures, **said
    )


def looks_of(charts: Sequence[Chart]) -> dict[str, Identity]:
    """Colour and marker of every series: a label looks the same in all charts."""
    labels = list(dict.fromkeys(label for chart in charts for label in chart.series))
    return dict(zip(labels, identities([{"name": label} for label in labels]), strict=True))


def drawing(name: str, chart: Chart, looks: Mapping[str, Identity]) -> plots.Chart:
    """The chart in the form that the page's script draws."""
    drawn = plots.Drawing()
    for label, points in chart.series.items():
        shown = [(x, y) for x, y in points if (x > 0 or not chart.log_x) and (y > 0 or not chart.log_y)]
        if not shown:
            continue
        x, y = [x for x, _ in shown], [y for _, y in shown]
        notes = [[f"{chart.x}: {rounded(a)}", f"{chart.y}: {rounded(b, 4)}"] for a, b in shown]
        drawn.add(looks[label], x, y, notes, kind="bars" if chart.bars else "line")
    if not drawn.data:
        return plots.Chart(name, chart.title, "", [])
    ends = _horizontal(chart, drawn.x), _vertical(chart, drawn.y)
    view = plots.View("", chart.y, drawn.data, *ends, summary=drawn.summary(f"{chart.y} against {chart.x}"))
    return plots.Chart(name, chart.title, "", [view], list(drawn.looks.values()))


def _horizontal(chart: Chart, values: list[float]) -> Axis:
    if chart.bars:
        places = sorted(set(values))
        found = axes.places_axis(places, [rounded(place) for place in places], chart.x)
        # half a place at either end, where the outer bars stand
        gap = min((after - before for before, after in itertools.pairwise(places)), default=1.0)
        return replace(found, low=places[0] - 0.6 * gap, high=places[-1] + 0.6 * gap)
    if not chart.log_x:
        return axes.score_axis(values, rounded, chart.x)
    if all(value >= 1 and value.is_integer() and not int(value) & (int(value) - 1) for value in map(float, values)):
        return axes.size_axis(values, short, chart.x)
    return axes.log_axis(values, rounded, chart.x)


def _vertical(chart: Chart, values: list[float]) -> Axis:
    if chart.log_y:
        return axes.log_axis(values, rounded)
    return axes.score_axis([*values, 0.0] if chart.bars else values)
