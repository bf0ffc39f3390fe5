"""Time, memory and operations of one layer against length, and decoding against the context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attensor.report.axes import Axis, log_axis, places_axis, size_axis
from attensor.report.charts import Chart, Drawing, View
from attensor.report.numbers import compact, is_number, milliseconds, short, size
from attensor.report.plots.parts import Format, against, chart
from attensor.report.reading import Mechanism, Results, field, length_name

__all__ = ["cost_against_length", "decoding"]


def cost_against_length(results: Results) -> Chart | None:
    """Time and memory of one layer against length, with the fitted exponents behind the names."""
    columns: tuple[tuple[str, str, Format, Callable[..., Axis], str | None, str | None], ...] = (
        ("forward + backward", "forward_backward_ms", milliseconds, log_axis, "forward_backward", "quartiles"),
        ("forward", "forward_ms", milliseconds, log_axis, "forward", "quartiles"),
        ("peak memory", "peak_bytes", size, size_axis, "peak_bytes", None),
        ("operations", "flops", compact, log_axis, None, None),
    )
    text = (
        "One layer alone, one sequence, both axes logarithmic: a straight line is a power of the length n. The fitted "
        "exponent stands behind the name: n^1 doubles with the length, n^2 quadruples. Bands are quartiles; "
        "operations are those of the card's formula."
    )
    drawn = []
    for label, key, form, scale, fit, quartiles in columns:
        ends = key.replace("_ms", "_quartiles") if quartiles else None
        axes = (_length_axis(f"length in {length_name(results)}"), _maker(scale, form))
        rows = lambda m: m.get("cost") or ()  # noqa: E731
        one = against(results, label, rows, ("length", key), form, axes, quartiles=ends, detail=_exponent(fit))
        drawn.append(one)
    return chart("cost", "Cost against length", text, drawn)


def decoding(results: Results) -> Chart | None:
    """Latency of the next token and bytes of state against the context, latency against the batch, whole models."""
    context = _length_axis("context in tokens")
    time, memory = _maker(log_axis, milliseconds), _maker(size_axis, size)
    single = lambda m: _decode(m, lambda row: row.get("batch", 1) == 1)  # noqa: E731
    wide = _context_of_batches(results)
    by_batch = lambda m: _decode(m, lambda row: row.get("context") == wide)  # noqa: E731
    keys, batch = ("context", "ms_per_token"), ("batch", "ms_per_token")
    batches = lambda values: _batch_axis(values, "sequences decoded together")  # noqa: E731
    generation = lambda m: m.get("generation") or ()  # noqa: E731
    speed = _maker(log_axis, compact)
    drawn: list[tuple[Drawing, View] | None] = [
        against(results, "latency", single, keys, milliseconds, (context, time), quartiles="quartiles"),
        against(results, "state", single, ("context", "state_bytes"), size, (context, memory)),
    ]
    if wide is not None:
        label = f"latency by batch at {short(wide)}"
        drawn.append(against(results, label, by_batch, batch, milliseconds, (batches, time), quartiles="quartiles"))
    drawn.append(
        against(results, "tokens/s of the model", generation, ("batch", "tokens_per_second"), compact, (batches, speed))
    )
    text = (
        "One layer: the time for one more token of every sequence and the bytes kept for it, after a context of so "
        "many tokens. Tokens a second are those of the whole model, all sequences together."
    )
    return chart("decode", "Decoding", text, drawn)


def _decode(mechanism: Mechanism, fits: Callable[[Mapping[str, Any]], bool]) -> Sequence[Mapping[str, Any]]:
    rows = [row for row in mechanism.get("decode") or () if fits(row)]
    return sorted(rows, key=lambda row: (row.get("context") or 0, row.get("batch") or 1))


def _context_of_batches(results: Results) -> int | None:
    """The context at which larger batches were measured."""
    rows = (row for m in results["mechanisms"] for row in m.get("decode") or ())
    return next((row["context"] for row in rows if is_number(row.get("batch")) and row["batch"] > 1), None)


def _exponent(fit: str | None) -> Callable[[Mechanism], str]:
    def detail(mechanism: Mechanism) -> str:
        exponent = field(mechanism, "exponent", fit) if fit else None
        return f"n^{exponent:.2f}" if is_number(exponent) else ""

    return detail


def _length_axis(title: str) -> Callable[[list[float]], Axis]:
    return lambda values: size_axis(values, short, title)


def _maker(scale: Callable[..., Axis], form: Format) -> Callable[[list[float]], Axis]:
    return lambda values: scale(values, form)


def _batch_axis(values: Sequence[float], title: str) -> Axis:
    places = sorted(set(values))
    return places_axis(places, [short(place) for place in places], title, is_log=True)
