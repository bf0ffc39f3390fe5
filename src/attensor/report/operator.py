"""Charts of the page about operators: singular values of every head, a chart for each layer."""

from __future__ import annotations

from collections.abc import Sequence

from attensor.report import axes
from attensor.report.charts import Chart, Drawing, View
from attensor.report.looks import Identity, identities
from attensor.report.numbers import rounded

__all__ = ["singular_value_charts"]

_LEAST = 1e-12  # of the first, below which nothing is drawn


def singular_value_charts(layers: Sequence[Sequence[Sequence[float]]]) -> list[Chart]:
    """A chart for each layer with a line for each head.

    Args:
        layers: [layer][head], singular values, the largest first.
    """
    names = [f"head {number}" for number in range(max(len(layer) for layer in layers))]
    looks = identities([{"name": name} for name in names])
    return [_chart(index, layer, looks) for index, layer in enumerate(layers)]


def _chart(index: int, heads: Sequence[Sequence[float]], looks: Sequence[Identity]) -> Chart:
    drawn = Drawing()
    for look, values in zip(looks, heads):
        shown = [value for value in values if value > _LEAST * values[0]]
        places = [float(place) for place in range(1, len(shown) + 1)]
        drawn.add(look, places, shown, [[f"value {place:.0f}", rounded(value)] for place, value in zip(places, shown)])
    title = "number of the singular value"
    view = View(
        "",
        "singular value of G",
        drawn.data,
        axes.axis(drawn.x, rounded, title),
        axes.log_axis(drawn.y, rounded),
        summary=drawn.summary("Singular values of G"),
    )
    return Chart(f"layer-{index}", f"Layer {index}", "", [view], list(drawn.looks.values()))
