"""The page of a recipe: pass marks, figures and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attensor.recipes._outcome import RULE, count_marks
from attensor.recipes._recipe import Chart
from attensor.report import charts as plots
from attensor.report.charts import Identity, identities, plot_text
from attensor.report.document import write_document
from attensor.report.numbers import rounded, short

__all__ = ["write_report"]

Axis = dict[str, Any]


def write_report(found: Mapping[str, Any], path: Path) -> None:
    """Write the page.

    Args:
        found: what `verdict.json` holds.
        path: the file to write; it appears whole or not at all.
    Raises:
        MissingExtraError: plotly or jinja2 is not installed.
        OSError: the file cannot be written.
    Cost: 5 MB, nearly all of it plotly.js; without charts a few KB.
    """
    charts = [Chart(**chart) for chart in found["charts"]]
    looks = looks_of(charts)
    drawn = [drawing(f"chart-{i}", chart, looks) for i, chart in enumerate(charts)]
    minutes = rounded(found["seconds"] / 60, 2)
    said = {"counted": count_marks([check["mark"] for check in found["checks"]]), "rule": RULE.replace("**", "")}
    write_document(path, "attensor.recipes:recipe.html", found=found, minutes=minutes, charts=drawn, **said)


def looks_of(charts: Sequence[Chart]) -> dict[str, Identity]:
    """Colour and marker of every series: a label looks the same in all charts."""
    labels = list(dict.fromkeys(label for chart in charts for label in chart.series))
    return dict(zip(labels, identities([{"name": label} for label in labels]), strict=True))


def drawing(name: str, chart: Chart, looks: Mapping[str, Identity]) -> plots.Chart:
    """The chart in the form that the page's script draws."""
    drawn = plots.Drawing()
    # plotly has no lines on bars, and names them at the places where they stand
    for label, points in chart.series.items():
        identity = looks[label]
        shown = [(x, y) for x, y in points if (x > 0 or not chart.log_x) and (y > 0 or not chart.log_y)]
        if not shown:
            continue
        x, y = [x for x, _ in shown], [y for _, y in shown]
        lines = (f"{plot_text(chart.x)}: %{{x}}", f"{plot_text(chart.y)}: %{{y:.4~g}}")
        bars: dict[str, Any] = {"type": "bar", "marker": {"color": identity.colour}} if chart.bars else {}
        drawn.add(identity, x, y, *lines, **bars)
        if chart.bars:
            del drawn.data[-1]["mode"], drawn.data[-1]["line"]
    axes = (_horizontal(chart, drawn.x), _vertical(chart, drawn.y)) if drawn.data else ({}, {})
    return plots.Chart(name, chart.title, "", [drawn.view("", chart.y, *axes)])


def _horizontal(chart: Chart, values: list[float]) -> Axis:
    title = plot_text(chart.x)
    if chart.bars:
        places = sorted(set(values))
        return plots.axis(title, tickvals=places, ticktext=[rounded(place) for place in places])
    if not chart.log_x:
        return plots.axis(title)
    if all(value >= 1 and value.is_integer() and not int(value) & (int(value) - 1) for value in map(float, values)):
        return plots.size_axis(values, short, title)
    return plots.log_axis(values, rounded, title)


def _vertical(chart: Chart, values: list[float]) -> Axis:
    if chart.log_y:
        return plots.log_axis(values, rounded)
    return plots.axis() if chart.bars else plots.score_axis(values)
