"""Skills, measured by generated tasks, and how scores fall with the size of the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from attensor.report.axes import Axis, axis, log_axis, places_axis, size_axis
from attensor.report.charts import Chart, Drawing, View
from attensor.report.looks import Identity
from attensor.report.numbers import compact, is_number, rounded, seconds, size
from attensor.report.plots.parts import by_quality, chart, levels, metric, percent, scores_axis, vertical_title
from attensor.report.reading import Results, field, score_number

__all__ = ["scale_fits", "skills"]

Drawn = tuple[Drawing, View]


def skills(results: Results) -> Chart | None:
    """One view a task: accuracy against the decode state, or against the length where several were read."""
    looks = {str(mechanism.get("name")): look for mechanism, look in by_quality(results)}
    drawn = [_task(task, looks) for task in field(results, "skills", "tasks") or () if isinstance(task, Mapping)]
    text = (
        "Small tasks that language rarely asks for, each with models of its own. Accuracy against the bytes that a "
        "layer keeps, or against the length that it is read at."
    )
    return chart("skills", "Skills", text, drawn)


def _task(task: Mapping[str, Any], looks: Mapping[str, Identity]) -> Drawn | None:
    rows = [row for row in task.get("rows") or () if str(row.get("name")) in looks]
    places = list(dict.fromkeys(key for row in rows for key in row.get("at") or {}))
    if len(places) > 1 and all(re.fullmatch(r"[\d.]+x", place) for place in places):
        return _by_place(task, rows, places, looks)
    drawing = Drawing()
    for row in rows:
        state, score = row.get("state_bytes"), row.get("score")
        if is_number(state) and state > 0 and is_number(score):
            at = [f"{percent(value)} at {place}" for place, value in (row.get("at") or {}).items()]
            notes = [[f"{percent(score)} right", f"state: {size(state)}", f"trained for {seconds(row.get('seconds'))}"]]
            notes[0] += at if len(at) > 1 else []
            drawing.add(looks[str(row["name"])], [state], [score], notes, kind="points")
    return _view(task, drawing, size_axis(drawing.x, size, "state of one layer")) if drawing.data else None


def _by_place(
    task: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], places: list[str], looks: Mapping[str, Identity]
) -> Drawn | None:
    drawing = Drawing()
    at = {place: float(place.rstrip("x")) for place in places}
    for row in rows:
        scores = {p: score for p in places if is_number(score := (row.get("at") or {}).get(p))}
        if scores:
            notes = [[f"{percent(score)} right at {place}"] for place, score in scores.items()]
            drawing.add(looks[str(row["name"])], [at[p] for p in scores], list(scores.values()), notes)
    return (
        _view(task, drawing, places_axis(list(at.values()), places, "length, of that trained on"))
        if drawing.data
        else None
    )


def _view(task: Mapping[str, Any], drawing: Drawing, horizontal: Axis) -> Drawn:
    title, chance = str(task.get("title") or task.get("name")), task.get("chance")
    lines = [(float(chance), f"chance {percent(chance)}")] if is_number(chance) else []
    vertical = axis([-0.04, 1.04], percent)
    summary = drawing.summary(f"{title}: accuracy against {horizontal.title}")
    return drawing, View(title, "accuracy, higher is better", drawing.data, horizontal, vertical, lines, summary)


def scale_fits(results: Results) -> Chart | None:
    """Scores against parameters, with the exponents of the fitted power laws behind the names."""
    drawing = Drawing()
    rows = {str(row.get("name")): row for row in field(results, "scale", "rows") or ()}
    for mechanism, identity in by_quality(results):
        row = rows.get(str(mechanism.get("name")), {})
        points = [p for p in row.get("points") or () if is_number(p.get("parameters")) and is_number(p.get("score"))]
        if not points:
            continue
        exponent, low, high = (row.get(key) for key in ("exponent", "low", "high"))
        detail = f"N^{exponent:.3f}" if is_number(exponent) else ""
        around = (
            [f"exponent {exponent:.3f} ({low:.3f} to {high:.3f})"] if all(map(is_number, (exponent, low, high))) else []
        )
        notes = [
            [
                f"{score_number(results, p['score'])} {metric(results)}",
                f"{p.get('size')}: {compact(p['parameters'])} parameters",
                *around,
            ]
            for p in points
        ]
        x, y = [p["parameters"] for p in points], [p["score"] for p in points]
        drawing.add(identity, x, y, notes, detail=detail)
    if not drawing.data:
        return None
    lines = levels(results)
    axes = log_axis(drawing.x, compact, "parameters N"), scores_axis(results, drawing.y, lines)
    summary = drawing.summary(f"{metric(results)} against parameters")
    view = View("", vertical_title(results), drawing.data, *axes, lines, summary)
    correlation = field(results, "scale", "rank_correlation")
    text = "The same comparison at several sizes, and the exponent of a power law through each."
    if is_number(correlation):
        text += f" The orders at the least and the greatest size have a rank correlation of {rounded(correlation, 2)}."
    return chart("scale", "Scale", text, [(drawing, view)])
