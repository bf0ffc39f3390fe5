"""The plots of the page, one function each. A function returns None when nothing was measured for its plot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from attensor.report.charts import (
    Chart,
    Drawing,
    Identity,
    View,
    axis,
    band,
    identities,
    log_axis,
    pareto_front,
    score_axis,
    size_axis,
)
from attensor.report.numbers import is_number, milliseconds, rounded, short, size
from attensor.report.tables import field, length_name, ordered

__all__ = ["charts"]

Results = Mapping[str, Any]
Format = Callable[[object], str]


def charts(results: Results) -> list[Chart]:
    """All plots for which there is something to show."""
    makers = (quality_curves, quality_against_cost, cost_against_length, decoding, pilots)
    return [chart for maker in makers if (chart := maker(results)) is not None]


def quality_curves(results: Results) -> Chart | None:
    """Held-out score while training, against tokens or seconds: the mean over seeds in a band of all seeds."""
    tokens = length_name(results)
    views = []
    for label, key, title in (
        (f"by {tokens}", "tokens", f"training {tokens} seen"),
        ("by time", "seconds", "training time"),
    ):
        drawing = Drawing()
        form: Format = short_count if key == "tokens" else seconds
        reach = _reach(results, key)
        late: list[float] = []
        for mechanism, identity in _by_quality(results):
            x, low, mean, high = _seed_curves(mechanism, key)
            if not x:
                continue
            late += [score for at, *scores in zip(x, low, high, strict=True) if at >= 0.25 * reach for score in scores]
            lines = (_hover_score(results), "%{customdata[0]}", "between seeds: %{customdata[1]}")
            drawing.data.append(band(identity, x, low, high))
            custom = [
                [f"{form(a)} {tokens}" if key == "tokens" else form(a), rounded((h - b) / 2, 2)]
                for a, b, h in zip(x, low, high, strict=True)
            ]
            drawing.add(identity, x, mean, *lines, customdata=custom)
        if drawing.data:
            unit = {"tickformat": "~s"} if key == "tokens" else {"ticksuffix": " s"}
            horizontal = axis(title, range=[0, 1.02 * reach], **unit)
            views.append(drawing.view(label, _score_title(results), horizontal, _score_axis(results, late)))
    text = "Held-out quality while training. Lines are means over seeds, bands reach from the worst to the best seed."
    return _chart("curves", "Quality during training", text, *views)


def quality_against_cost(results: Results) -> Chart | None:
    """Final score against the price: training time, or the memory that decoding needs."""
    tokens = length_name(results)
    longest = max((row["context"] for m in results["mechanisms"] for row in m.get("decode") or ()), default=None)

    def training(mechanism: Results) -> float | None:
        rate = mechanism.get("train_tokens_per_second")
        return 1e6 / rate if is_number(rate) and rate > 0 else None

    def state(mechanism: Results) -> float | None:
        return next((row["state_bytes"] for row in mechanism.get("decode") or () if row["context"] == longest), None)

    time = _against(results, "training time", training, seconds, log_axis, f"training time per million {tokens}")
    title = f"state of one layer after {short(longest)} tokens"
    memory = _against(results, "decode state", state, size, size_axis, title)
    text = (
        "Final quality against its price. The dotted line is the Pareto front: nothing else beats what lies on it in "
        "both at once."
    )
    return _chart("pareto", "Quality against cost", text, time, memory)


def cost_against_length(results: Results) -> Chart | None:
    """Time and memory of one layer against length, with the fitted exponents in the legend."""
    columns = (
        ("forward + backward", "forward_backward_ms", milliseconds, log_axis, "forward_backward"),
        ("forward", "forward_ms", milliseconds, log_axis, "forward"),
        ("peak memory", "peak_bytes", size, size_axis, "peak_bytes"),
    )
    text = (
        "One layer alone, batch 1, both axes logarithmic: a straight line is a power of the length n. The fitted "
        "exponent stands in the legend: n^1 doubles with the length, n^2 quadruples."
    )
    views = (_against_length(results, "cost", "length", *column) for column in columns)
    return _chart("cost", "Cost against length", text, *views)


def decoding(results: Results) -> Chart | None:
    """Latency of the next token, and bytes of state, against the context."""
    latency = _against_length(results, "decode", "context", "latency", "ms_per_token", milliseconds, log_axis)
    state = _against_length(results, "decode", "context", "state", "state_bytes", size, size_axis)
    text = (
        "One layer, batch 1: the time for one more token and the bytes kept for it, after a context of so many tokens."
    )
    return _chart("decode", "Decoding", text, latency, state)


def pilots(results: Results) -> Chart | None:
    """Score of the short pilot runs against the learning rate; the chosen one is larger."""
    drawing = Drawing()
    for mechanism, identity in _by_quality(results):
        rows = sorted(
            (p["learning_rate"], p["score"]) for p in mechanism.get("pilots") or () if is_number(p.get("score"))
        )
        if not rows:
            continue
        chosen = mechanism.get("learning_rate")
        marker = {
            "color": identity.colour,
            "symbol": identity.marker,
            "size": [15 if rate == chosen else 8 for rate, _ in rows],
            "opacity": 1,
        }
        notes = [[rounded(rate, 2), " (taken)" if rate == chosen else ""] for rate, _ in rows]
        lines = (_hover_score(results), "learning rate %{customdata[0]}%{customdata[1]}")
        detail = rounded(chosen, 2) if is_number(chosen) else ""
        x, y = zip(*rows, strict=True)
        drawing.add(identity, x, y, *lines, detail=detail, marker=marker, customdata=notes)
    if not drawing.data:
        return None
    ticks = sorted(set(drawing.x))
    horizontal = log_axis(drawing.x, rounded, "learning rate")
    horizontal |= {"tickvals": ticks, "ticktext": [rounded(rate, 2) for rate in ticks]}
    view = drawing.view("", _score_title(results), horizontal, _score_axis(results, drawing.y))
    text = (
        "Every mechanism tried the same learning rates in short pilot runs and trained on with its best, the larger "
        "marker. A best one at the edge of the grid may not be its best."
    )
    return _chart("pilots", "Learning rates", text, view)


def seconds(value: object) -> str:
    """Seconds with their unit."""
    return milliseconds(1000 * value) if is_number(value) else milliseconds(None)


def short_count(value: object) -> str:
    """1500000 -> `1.5M`."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if is_number(value) and value >= factor:
            return f"{rounded(value / factor)}{unit}"
    return rounded(value)


def _against(
    results: Results,
    label: str,
    price: Callable[[Results], float | None],
    form: Format,
    scale: Callable[..., dict[str, Any]],
    title: str,
) -> View | None:
    """Final score against a price, with the Pareto front."""
    drawing = Drawing()
    scores: list[float] = []
    for mechanism, identity in _by_quality(results):
        x, y, spread = price(mechanism), field(mechanism, "score", "mean"), field(mechanism, "score", "spread")
        if not (is_number(x) and x > 0 and is_number(y)):
            continue
        spread = spread if is_number(spread) else 0.0
        scores += [y - spread, y + spread]
        error = {"type": "data", "array": [spread], "thickness": 1.5, "width": 4}
        marker = {"color": identity.colour, "symbol": identity.marker, "size": 13}
        lines, looks = (_hover_score(results), f"{title}: %{{customdata}}"), {"mode": "markers", "marker": marker}
        drawing.add(identity, [x], [y], *lines, detail=form(x), error_y=error, customdata=[form(x)], **looks)
    if not drawing.data:
        return None
    points = list(zip(drawing.x, drawing.y, strict=True))
    front = pareto_front(points, lower_is_better=bool(field(results, "quality", "lower_is_better")))
    line = {"color": "#8a8f98", "width": 1.5, "dash": "dot", "shape": "hv"}
    x_front, y_front = zip(*front, strict=True)
    drawing.data.insert(
        0, {"type": "scatter", "mode": "lines", "x": x_front, "y": y_front, "line": line, "hoverinfo": "skip"}
    )
    vertical = _score_title(results) + "; further left is cheaper"
    return drawing.view(label, vertical, scale(drawing.x, form, title), _score_axis(results, scores))


def _against_length(
    results: Results,
    table: str,
    length: str,
    label: str,
    key: str,
    form: Format,
    scale: Callable[..., dict[str, Any]],
    fit: str | None = None,
) -> View | None:
    """A column of the `cost` or `decode` rows against length."""
    drawing = Drawing()
    for mechanism, identity in _by_quality(results):
        rows = [r for r in mechanism.get(table) or () if is_number(r.get(key)) and r[key] > 0]
        if not rows:
            continue
        x, y = [r[length] for r in rows], [r[key] for r in rows]
        exponent = field(mechanism, "exponent", fit) if fit else None
        detail = f"n^{exponent:.2f}" if is_number(exponent) else ""
        lines = (f"{label}: %{{customdata[0]}}", f"{length}: %{{customdata[1]}}")
        custom = [[form(b), f"{a:,}"] for a, b in zip(x, y, strict=True)]
        drawing.add(identity, x, y, *lines, detail=detail, customdata=custom)
    if not drawing.data:
        return None
    horizontal = size_axis(drawing.x, short, f"{length} in {length_name(results)}")
    return drawing.view(label, label, horizontal, scale(drawing.y, form))


def _chart(name: str, title: str, text: str, *views: View | None) -> Chart | None:
    shown = [view for view in views if view is not None]
    return Chart(name, title, text, shown) if shown else None


def _by_quality(results: Results) -> Iterator[tuple[Results, Identity]]:
    """Mechanisms, best first, each with its looks: the legend then reads like the table."""
    looks = identities(results["mechanisms"])
    return ((results["mechanisms"][i], looks[i]) for i in ordered(results))


def _reach(results: Results, key: str) -> float:
    """The end of the longest curve."""
    points = (p for m in results["mechanisms"] for r in m.get("runs") or () for p in r.get("curve") or ())
    return max((point[key] for point in points if is_number(point.get(key))), default=0.0)


def _seed_curves(mechanism: Results, key: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """x, lowest, mean and highest score over the seeds that have a point at the same step."""
    by_step: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for run in mechanism.get("runs") or ():
        for point in run.get("curve") or ():
            if is_number(point.get(key)) and point[key] > 0 and is_number(point.get("score")):
                by_step[point["step"]].append((point[key], point["score"]))
    points = [tuple(zip(*at, strict=True)) for _, at in sorted(by_step.items())]
    x, mean = ([fmean(at[i]) for at in points] for i in (0, 1))
    return x, [min(scores) for _, scores in points], mean, [max(scores) for _, scores in points]


def _is_accuracy(results: Results) -> bool:
    return bool(field(results, "quality", "metric") == "accuracy")


def _score_axis(results: Results, scores: Sequence[float]) -> dict[str, Any]:
    return score_axis(scores, **({"tickformat": ".0%"} if _is_accuracy(results) else {}))


def _hover_score(results: Results) -> str:
    metric = str(field(results, "quality", "metric") or "score")
    return f"%{{y:{'.1%' if _is_accuracy(results) else '.3f'}}} {metric}"


def _score_title(results: Results) -> str:
    metric = str(field(results, "quality", "metric") or "score")
    return f"{metric}, {'lower' if field(results, 'quality', 'lower_is_better') else 'higher'} is better"
