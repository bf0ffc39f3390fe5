"""Time, memory and operations of one layer against length, and decoding against the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from attensor.report.axes import Axis, log_axis, places_axis, size_axis
from attensor.report.charts import Chart
from attensor.report.numbers import compact, is_number, milliseconds, short, size
from attensor.report.plots.parts import Measured, against, chart, crossings
from attensor.report.reading import Results, length_name

__all__ = ["cost_against_length", "decoding"]


def cost_against_length(results: Results) -> Chart | None:
    """Time and memory of one layer against length, with the fitted exponents behind the names."""
    length = _sizes(f"length in {length_name(results)}")
    where = ("cost", "length")

    def time(label: str, key: str) -> Measured:
        vertical, quartiles = f"time of one layer, {label}", f"{key}_quartiles"
        made = Measured(label, vertical, *where, f"{key}_ms", milliseconds, log_axis, length)
        return replace(made, quartiles=quartiles, exponent=key)

    peak = Measured("peak memory", "peak memory of one layer", *where, "peak_bytes", size, size_axis, length)
    flops = Measured("operations", "forward operations of one layer", *where, "flops", compact, log_axis, length)
    shown = [time("forward + backward", "forward_backward"), time("forward", "forward")]
    shown += [replace(peak, exponent="peak_bytes"), flops]
    text = (
        "One layer alone, one sequence, both axes logarithmic: a straight line is a power of the length n. The fitted "
        "exponent stands behind the name: n^1 doubles with the length, n^2 quadruples. Bands are quartiles; "
        "operations are those of the card's formula."
    )
    return chart(
        "cost", "Cost against length", text + crossings(results, "cost"), [against(results, what) for what in shown]
    )


def decoding(results: Results) -> Chart | None:
    """Latency of the next token and bytes of state against the context, latency against the batch, whole models."""
    context, batches = _sizes("context in tokens"), _batches
    wide = _context_of_batches(results)
    latency = Measured(
        "latency",
        "time of one layer for one more token",
        *("decode", "context", "ms_per_token"),
        milliseconds,
        log_axis,
        context,
        is_wanted=lambda row: row.get("batch", 1) == 1,
        quartiles="quartiles",
    )
    state = replace(latency, label="state", vertical="state that one layer keeps", up="state_bytes", quartiles="")
    state = replace(state, form=size, scale=size_axis)
    by_batch = replace(
        latency,
        label=f"latency by batch at {short(wide)}",
        vertical="time of one layer for one more token of every sequence",
        across="batch",
        horizontal=batches,
        is_wanted=lambda row: wide is not None and row.get("context") == wide,
    )
    what, columns = "tokens a second, whole model, all sequences together", ("generation", "batch", "tokens_per_second")
    whole = Measured("tokens/s of the model", what, *columns, compact, log_axis, batches)
    text = (
        "One layer: the time for one more token of every sequence and the bytes kept for it, after a context of so "
        "many tokens. Tokens a second are those of the whole model, all sequences together."
    )
    return chart("decode", "Decoding", text, [against(results, one) for one in (latency, state, by_batch, whole)])


def _context_of_batches(results: Results) -> int | None:
    """The context at which larger batches were measured."""
    rows = (row for m in results["mechanisms"] for row in m.get("decode") or ())
    return next((row.get("context") for row in rows if is_number(row.get("batch")) and row["batch"] > 1), None)


def _sizes(title: str) -> Callable[[list[float]], Axis]:
    return lambda values: size_axis(values, short, title)


def _batches(values: Sequence[float]) -> Axis:
    places = sorted(set(values))
    return places_axis(places, [short(place) for place in places], "sequences decoded together", is_log=True)
