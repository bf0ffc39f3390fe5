"""Scores: while training, against length, against their price, and of the pilot runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean

from attensor.report.axes import Axis, axis, log_axis, places_axis, size_axis
from attensor.report.charts import Chart, Drawing, Series, View, pareto_front
from attensor.report.choices import Choice, choices
from attensor.report.numbers import compact, is_number, milliseconds, rounded, seconds, short, size
from attensor.report.plots.parts import (
    Format,
    by_quality,
    chart,
    crossings,
    levels,
    metric,
    scores_axis,
    vertical_title,
)
from attensor.report.reading import (
    Mechanism,
    Results,
    at_length,
    decode_row,
    field,
    is_text,
    length_name,
    score_at,
    score_number,
    score_text,
    trained_length,
)

__all__ = ["pilots", "quality_against_cost", "quality_against_length", "quality_curves"]

Drawn = tuple[Drawing, View]


def quality_curves(results: Results) -> Chart | None:
    """The score while training, against tokens or seconds: the mean over seeds in a band of all seeds."""
    tokens = length_name(results)
    drawn = [
        _curves(results, f"by {tokens}", "tokens", f"training {tokens} seen"),
        _curves(results, "by time", "seconds", "training time"),
        _curves(results, "from the start", "tokens", f"training {tokens} seen", is_whole=True),
    ]
    text = (
        "Lines are means over seeds, bands reach from the worst to the best seed. A reading in mid-run is the score "
        "that a run of that length would have. Lines across are chance and the references; those far away stand at "
        "the edge."
    )
    return chart("curves", "Quality during training", text, drawn)


def _curves(results: Results, label: str, key: str, title: str, *, is_whole: bool = False) -> Drawn | None:
    drawing, form = Drawing(), compact if key == "tokens" else seconds
    unit = f" {length_name(results)}" if key == "tokens" else ""
    shown: list[float] = []
    for mechanism, identity in by_quality(results):
        x, low, mean, high = _seed_curves(mechanism, key)
        if not x:
            continue
        late = [i for i, at in enumerate(x) if is_whole or at >= 0.2 * max(x)]
        shown += [score for i in late for score in (low[i], high[i])]
        notes = [
            [f"{score_number(results, m)} {metric(results)}", f"{form(a)}{unit}", f"seeds: {_range(results, lo, hi)}"]
            for a, lo, m, hi in zip(x, low, mean, high, strict=True)
        ]
        drawing.add(identity, x, mean, notes, low=low, high=high)
    if not drawing.data:
        return None
    lines = levels(results)
    near = [score for score, _ in lines] if is_whole else []
    horizontal = axis([0, 1.02 * max(drawing.x)], form, title)
    summary = drawing.summary(f"{metric(results)} against {title}")
    vertical = scores_axis(results, [*shown, *near], lines)
    return drawing, View(label, vertical_title(results), drawing.data, horizontal, vertical, lines, summary)


def _range(results: Results, low: float, high: float) -> str:
    return f"{score_number(results, low)} to {score_number(results, high)}"


def quality_against_length(results: Results) -> Chart | None:
    """The score at 1, 2 and 4 times the training length."""
    trained = trained_length(results)
    if trained is None:
        return None
    drawing = Drawing()
    ends: list[float] = []
    for mechanism, identity in by_quality(results):
        keys = {1: "score", 2: "score_2x", 4: "score_4x"}
        found: dict[int, dict[str, float]] = {
            factor: mechanism[key] for factor, key in keys.items() if is_number(field(mechanism, key, "mean"))
        }
        if len(found) < 2:
            continue
        y = [score["mean"] for score in found.values()]
        low = [_end(score, "low") for score in found.values()]
        high = [_end(score, "high") for score in found.values()]
        notes = [
            [f"{score_text(results, score)} {metric(results)}", f"{short(trained * factor)} tokens ({factor}x)"]
            for factor, score in found.items()
        ]
        ends += low + high
        drawing.add(identity, [trained * factor for factor in found], y, notes, low=low, high=high)
    if not drawing.data:
        return None
    places = [trained * factor for factor in (1, 2, 4)]
    texts = [f"{short(place)} ({factor}x)" for place, factor in zip(places, (1, 2, 4), strict=True)]
    horizontal = places_axis(places, texts, "length in tokens", is_log=True)
    lines = levels(results)
    vertical = scores_axis(results, ends, lines)
    summary = drawing.summary(f"{metric(results)} against length")
    view = View("", vertical_title(results), drawing.data, horizontal, vertical, lines, summary)
    text = "The same models, trained at 1x and read on longer windows, with 95 % intervals."
    return chart("length", "Quality against length", text + crossings(results, "quality"), [(drawing, view)])


def _end(score: dict[str, float], key: str) -> float:
    return score[key] if is_number(score.get(key)) else score["mean"]


def quality_against_cost(results: Results) -> Chart | None:
    """The score against a price, under every choice of length and rule."""
    drawn = [
        _pareto(results, choice, *price) for choice in choices(results) for price in _prices(results, choice.length)
    ]
    text = (
        "The score against its price, both at the length and under the rule chosen above. The dotted line is the "
        "Pareto front: nothing beats what lies on it in both at once."
    )
    return chart("pareto", "Quality against cost", text, drawn)


Price = tuple[str, str, Callable[[Mechanism], object], Format, Callable[..., Axis]]


def _prices(results: Results, length: int | None) -> list[Price]:
    tokens = length_name(results)
    at = f" at {short(length)}" if length else ""

    def training(mechanism: Mechanism) -> float | None:
        rate = mechanism.get("train_tokens_per_second")
        return 1e6 / rate if is_number(rate) and rate > 0 else None

    layer = lambda m: at_length(m, length).get("forward_backward_ms")  # noqa: E731
    memory = lambda m: at_length(m, length).get("peak_bytes")  # noqa: E731
    latency = lambda m: decode_row(m, length).get("ms_per_token")  # noqa: E731
    state = lambda m: decode_row(m, length).get("state_bytes")  # noqa: E731
    prices: list[Price] = [
        ("training", f"training time per million {tokens}, whole model", training, seconds, log_axis),
        ("layer time", f"forward and backward of one layer{at}", layer, milliseconds, log_axis),
        ("layer memory", f"peak memory of one layer{at}", memory, size, size_axis),
    ]
    if is_text(results):
        prices.append(("decode state", f"state of one layer{at}", state, size, size_axis))
        prices.append(("decode time", f"time of one layer for one more token{at}", latency, milliseconds, log_axis))
    return prices


def _pareto(
    results: Results,
    choice: Choice,
    label: str,
    title: str,
    price: Callable[[Mechanism], object],
    form: Format,
    scale: Callable[..., Axis],
) -> Drawn | None:
    """The score under a choice against a price, with the Pareto front."""
    drawing = Drawing()
    ends: list[float] = []
    for mechanism, identity in by_quality(results):
        score, _ = score_at(results, mechanism, choice.length, choice.rule)
        x, y = price(mechanism), field(score, "mean")
        if not (is_number(x) and x > 0 and is_number(y)):
            continue
        low, high = _end(score, "low"), _end(score, "high")
        ends += [low, high]
        notes = [[f"{score_text(results, score)} {metric(results)}", f"{title}: {form(x)}"]]
        drawing.add(identity, [x], [y], notes, kind="points", low=[low], high=[high])
    if not drawing.data:
        return None
    front = pareto_front(
        list(zip(drawing.x, drawing.y, strict=True)),
        lower_is_better=bool(field(results, "quality", "lower_is_better")),
    )
    data = [Series("", [x for x, _ in front], [y for _, y in front], kind="steps"), *drawing.data]
    lines = levels(results)
    on_front = [s.group for x, y in front for s in drawing.data if (s.x[0], s.y[0]) == (x, y)]
    names = ", ".join(drawing.looks[group].label for group in dict.fromkeys(on_front))
    summary = f"{metric(results)} against {title}, {len(drawing.data)} mechanisms. On the Pareto front: {names}."
    vertical = vertical_title(results) + "; further left is cheaper"
    axes = scale(drawing.x, form, title), scores_axis(results, ends, lines)
    return drawing, View(label, vertical, data, *axes, lines, summary, choice.length, choice.rule)


def pilots(results: Results) -> Chart | None:
    """Score of the short pilot runs against the learning rate; the chosen one is larger."""
    drawing = Drawing()
    for mechanism, identity in by_quality(results):
        rows = sorted(
            (p["learning_rate"], p["score"])
            for p in mechanism.get("pilots") or ()
            if is_number(p.get("score")) and is_number(p.get("learning_rate"))
        )
        if not rows:
            continue
        chosen = mechanism.get("learning_rate")
        taken = [i for i, (rate, _) in enumerate(rows) if rate == chosen]
        notes = [
            [
                f"{score_number(results, score)} {metric(results)}",
                f"learning rate {rounded(rate, 2)}{' (taken)' if rate == chosen else ''}",
            ]
            for rate, score in rows
        ]
        x, y = zip(*rows, strict=True)
        drawing.add(identity, x, y, notes, large=taken)
    if not drawing.data:
        return None
    places = sorted(set(drawing.x))
    horizontal = places_axis(places, [rounded(place, 2) for place in places], "learning rate", is_log=True)
    lines = levels(results)
    vertical = scores_axis(results, drawing.y, lines)
    summary = drawing.summary(f"{metric(results)} of the pilot runs against the learning rate")
    view = View("", vertical_title(results), drawing.data, horizontal, vertical, lines, summary)
    text = (
        "Scores on the selection side. Every mechanism tried learning rates a factor of three apart until its best "
        "had neighbours on both sides, and trained on with the best, the larger mark."
    )
    return chart("pilots", "Learning rates", text, [(drawing, view)])


def _seed_curves(mechanism: Mechanism, key: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """x, lowest, mean and highest score over the seeds that have a point at the same step."""
    by_step: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for run in mechanism.get("runs") or ():
        # of merged results: seconds of one machine only
        if key == "seconds" and run.get("machine") != mechanism.get("machine"):
            continue
        for point in run.get("curve") or ():
            if is_number(point.get(key)) and point[key] > 0 and is_number(point.get("score")):
                by_step[point.get("step")].append((point[key], point["score"]))
    points: Sequence[tuple[tuple[float, ...], ...]] = [
        tuple(zip(*at, strict=True)) for step, at in sorted(by_step.items(), key=lambda one: one[1][0][0])
    ]
    x, mean = ([fmean(at[i]) for at in points] for i in (0, 1))
    return x, [min(scores) for _, scores in points], mean, [max(scores) for _, scores in points]
