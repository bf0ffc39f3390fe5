"""The page of a swap on trial: what it costs the model, beside controls that had the same chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attensor.report import axes
from attensor.report.charts import Chart, Drawing, View
from attensor.report.document import write_document
from attensor.report.looks import Identity, identities
from attensor.report.numbers import rounded

__all__ = ["sentences", "write_swap_report"]


def write_swap_report(found: Mapping[str, Any], path: Path) -> None:
    """Write the page.

    Args:
        found: `trial`, a `Trial` as a dictionary; `to`, the mechanism; `model`, its name; and `facts`, label -> text.
        path: the file to write; it appears whole or not at all.
    Raises:
        MissingExtraError: jinja2 is not installed.
        OSError: the file cannot be written.
    """
    trial, to = found["trial"], found["to"]
    looks = dict(zip(trial["carried"], identities([{"name": arm} for arm in trial["carried"]]), strict=True))
    charts = [_alone(trial, looks), _hybrid(trial, looks)]
    write_document(
        path,
        "attensor.report:swap.html",
        found=found,
        trial=trial,
        to=to,
        said=sentences(trial, to),
        rows=_rows(trial, to),
        layers=_layers(trial, to),
        costs=_costs(trial, to),
        charts=charts,
    )


def sentences(trial: Mapping[str, Any], to: str) -> list[str]:
    """What may be said, and what the controls forbid to say."""
    unit, base = trial["unit"], trial["original"]["value"]
    done = trial["distilled"] or trial["aligned"]
    others = {arm: score for arm, score in trial["aligned"].items() if arm != to}
    strongest = min(others, key=lambda arm: others[arm]["worse"])
    against = trial["against"][strongest]
    gap = f"{abs(against['worse']):.3f} ± {against['interval']:.3f} {unit}"
    if against["worse"] + against["interval"] < 0:
        verdict = f"{to} is better than every control; it beats the strongest, {strongest}, by {gap}"
    elif against["worse"] - against["interval"] > 0:
        verdict = f"{to} is worse than {strongest}, a control, by {gap}: take that, or another mechanism"
    else:
        verdict = f"{to} cannot be told from {strongest}, a control ({gap}): what it reaches, the control reaches"
    cost = done[to]
    trained = "aligned and distilled" if trial["distilled"] else "aligned"
    share = f"{len(trial['layers'])} of {trial['of']} attentions"
    word = "worse" if cost["worse"] >= 0 else "better"
    price = f"{word} by {abs(cost['worse']):.3f} ± {cost['interval']:.3f}"
    return [
        f"{verdict}.",
        f"With {share} swapped and {trained}, the model has {cost['value']:.3f} {unit} in place of "
        f"{base:.3f}: {price}.",
        f"No attention at all leaves {others['no attention']['value']:.3f} {unit}: that much of the task needs "
        "no attention.",
    ]


def _rows(trial: Mapping[str, Any], to: str) -> list[dict[str, Any]]:
    """One arm a row, the replacement first."""
    rows: list[dict[str, Any]] = []
    for arm in (to, *(arm for arm in trial["carried"] if arm != to)):
        scores = [trial[stage].get(arm) for stage in ("carried", "aligned", "distilled")]
        aligned = trial["aligned"][arm]
        rows.append(
            {
                "arm": arm,
                "kind": "replacement" if arm == to else "control",
                "scores": [f"{one['value']:.3f}" if one else "" for one in scores],
                "worse": _price(aligned),
            }
        )
    return rows


def _layers(trial: Mapping[str, Any], to: str) -> list[dict[str, str]]:
    """One layer a row: how well it was learned, and what it costs alone."""
    errors = trial["errors"].get(to, [None] * len(trial["layers"]))
    return [
        {
            "name": name,
            "error": "" if error is None else rounded(error, 2),
            "worse": _price(alone),
        }
        for name, error, alone in zip(trial["layers"], errors, trial["alone"][to], strict=True)
    ]


def _price(score: Mapping[str, float]) -> str:
    return f"{score['worse']:.3f} ± {score['interval']:.3f}"


def _costs(trial: Mapping[str, Any], to: str) -> list[dict[str, str]]:
    rows = []
    for label, values, unit in (
        ("Decode state", trial["bytes"], "bytes"),
        ("Forward pass", trial["milliseconds"], "ms"),
    ):
        if to in values:
            before, after = values["original"], values[to]
            saved = f"{rounded(before / after, 3)} times less" if after < before else "nothing saved"
            numbers = [f"{x:,}" if isinstance(x, int) else rounded(x, 3) for x in (before, after)]
            rows.append(
                {"label": label, "before": f"{numbers[0]} {unit}", "after": f"{numbers[1]} {unit}", "saved": saved}
            )
    return rows


def _alone(trial: Mapping[str, Any], looks: Mapping[str, Identity]) -> Chart:
    places = list(range(len(trial["layers"])))
    return _chart(
        "alone",
        "One layer swapped at a time",
        "Which layers the model can spare: worse than the original with this layer alone swapped, aligned. Where a "
        "control stands as low as the replacement, the layer does little that any attention would be needed for.",
        {arm: [one["worse"] for one in scores] for arm, scores in trial["alone"].items()},
        [places] * len(trial["alone"]),
        "attention, from the input to the output",
        f"worse by, in {trial['unit']}",
        looks,
    )


def _hybrid(trial: Mapping[str, Any], looks: Mapping[str, Identity]) -> Chart:
    order = ", ".join(str(index) for index in trial["order"])
    return _chart(
        "hybrid",
        "More and more layers swapped",
        f"The greedy hybrid: the layer that costs least joins next, in the order {order}. The strongest control "
        "is in the same layers. Sets are chosen by the passages that score them, which flatters the replacement.",
        {arm: [one["worse"] for one in scores] for arm, scores in trial["hybrid"].items()},
        [list(range(1, len(scores) + 1)) for scores in trial["hybrid"].values()],
        "attentions swapped",
        f"worse by, in {trial['unit']}",
        looks,
    )


def _chart(
    name: str,
    title: str,
    text: str,
    curves: Mapping[str, Sequence[float]],
    places: Sequence[Sequence[int]],
    across: str,
    up: str,
    looks: Mapping[str, Identity],
) -> Chart:
    drawn = Drawing()
    for (arm, y), x in zip(curves.items(), places, strict=True):
        notes = [[f"{across}: {a}", f"{up}: {rounded(b, 3)}"] for a, b in zip(x, y, strict=True)]
        drawn.add(looks[arm], [float(a) for a in x], list(y), notes)
    ends = sorted({*drawn.x})
    view = View(
        "",
        up,
        drawn.data,
        axes.places_axis(ends, [str(int(place)) for place in ends], across),
        axes.score_axis([*drawn.y, 0.0]),
        levels=[(0.0, "original")],
        summary=drawn.summary(f"{up} against {across}"),
    )
    return Chart(name, title, text, [view], list(drawn.looks.values()))
