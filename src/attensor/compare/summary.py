"""Conclusions: sentences that say in plain words what the numbers mean.

Nothing here knows a mechanism by name: every sentence is computed from the rows of results.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from attensor.compare.fits import leaders, ranked, tied
from attensor.report.numbers import short, size

__all__ = ["answer"]

# a ratio of times below this is within the noise of a measurement
_NOISE = 1.25
# bits per byte
_WORTH_SAYING = 0.02

Row = dict[str, Any]
Column = dict[str, dict[int, float]]
Extremes = tuple[int, tuple[float, str], tuple[float, str]]


def answer(results: Row) -> list[str]:
    """What to pick, and why, in sentences.

    Args:
        results: as in results.json; rows without a score are left out of what they cannot support.
    """
    rows, quality = results["mechanisms"], results["quality"]
    order = ranked(rows, lower_is_better=quality["lower_is_better"])
    units = "tokens" if results["data"]["kind"] == "text" else "cells"
    sentences = _quality(order, quality["metric"]) + _longer(rows, results) + _speed(rows, order, units)
    sentences += _memory(rows, units) + _decode(rows)
    sentences += [
        f"{row['name']} has no result: {row['reason'].rstrip('.')}." for row in rows if row["status"] == "failed"
    ]
    unfinished = [row["name"] for row in rows if row["status"] == "unfinished"]
    if unfinished:
        sentences.append(f"Not finished: {enumerated(unfinished)}; this is what the rest shows.")
    return sentences + _caution(order, units)


def _quality(order: list[Row], metric: str) -> list[str]:
    if not order:
        return ["No mechanism has been trained to the end, so there is no ranking."]
    best, *others = tied(order)
    sentence = f"Best quality: {best['name']}, {_score(best['score'], metric)}"
    if others:
        names = enumerated(f"{row['name']} ({_score(row['score'], metric)})" for row in others)
        sentence += f"; {names} cannot be told from it by these seeds"
    if order[-1] is not best and order[-1] not in others:
        sentence += f". Last: {order[-1]['name']}, {_score(order[-1]['score'], metric)}"
    return [sentence + "."]


def _longer(rows: list[Row], results: Row) -> list[str]:
    metric, lower = results["quality"]["metric"], results["quality"]["lower_is_better"]
    order = ranked(rows, lower_is_better=lower, key="score_4x")
    if not order:
        return []
    best, *others = tied(order, key="score_4x")
    length = 4 * results["plan"]["length"]
    sentence = f"Read at {length} tokens, 4 times the training length, the best is {best['name']} "
    sentence += f"({_score(best['score_4x'], metric)})"
    if others:
        sentence += f", in a tie with {enumerated(row['name'] for row in others)}"
    worst = max(order, key=lambda row: _loss_at_4x(row, lower))
    if _loss_at_4x(worst, lower) > worst["score"]["spread"] + worst["score_4x"]["spread"] + _WORTH_SAYING:
        sentence += (
            f"; {worst['name']} loses most, from {worst['score']['mean']:.3f} to {worst['score_4x']['mean']:.3f}"
        )
    return [sentence + "."]


def _loss_at_4x(row: Row, lower_is_better: bool) -> float:
    change: float = row["score_4x"]["mean"] - row["score"]["mean"]
    return change if lower_is_better else -change


def _speed(rows: list[Row], order: list[Row], units: str) -> list[str]:
    sentences = [_fastest(rows, units, "the fastest layer")] if len(rows) > 1 else []
    good = tied(order) if order else []
    if len(good) > 1 and len(good) < len(rows):
        sentences.append(_fastest(good, units, "the fastest of those that are best in quality"))
    elif len(good) == 1:
        sentences.append(_price_of_quality(good[0], rows, units))
    return [sentence for sentence in sentences if sentence]


def _fastest(rows: list[Row], units: str, what: str) -> str:
    """`Up to 2k tokens on this machine a is the fastest; from 4k on b is, 3.1x faster than a at 16k.`"""
    parts = leaders(_times(rows), noise=_NOISE)
    if not parts:
        return ""
    first, *later = parts
    if not later:
        return f"On this machine {first.name} is {what} at all lengths, up to {short(first.last)} {units}."
    sentence = f"Up to {short(first.last)} {units} on this machine {first.name} is {what} (forward and backward)"
    for part in later:
        sentence += f"; from {short(part.first)} {units} on {part.name} is"
    last = later[-1]
    times = _times(rows)
    if first.name != last.name and last.last in times[first.name]:
        ratio = times[first.name][last.last] / times[last.name][last.last]
        sentence += f", {ratio:.1f}x faster than {first.name} at {short(last.last)}"
    return sentence + "."


def _price_of_quality(best: Row, rows: list[Row], units: str) -> str:
    times = _times(rows)
    own = times.get(best["name"], {})
    if not own:
        return ""
    prices = {}
    for length in sorted({min(own), max(own)}):
        least, name = min((t[length], name) for name, t in times.items() if length in t)
        ratio = own[length] / least
        is_dear = ratio > _NOISE
        prices[short(length)] = f"{ratio:.1f}x the time of the fastest ({name})" if is_dear else "as little as any"
    if set(prices.values()) == {"as little as any"}:
        return f"The best in quality, {best['name']}, is also as fast as any at {enumerated(prices)} {units}."
    sentence = enumerated(f"{price} at {length} {units}" for length, price in prices.items())
    return f"The best in quality, {best['name']}, takes {sentence}."


def _memory(rows: list[Row], units: str) -> list[str]:
    found = _extremes(_column(rows, "cost", "length", "peak_bytes"))
    return (
        [f"A training step of one layer on {short(found[0])} {units} needs {_from_to(found, size)}."] if found else []
    )


def _decode(rows: list[Row]) -> list[str]:
    sentences = []
    if state := _extremes(_column(rows, "decode", "context", "state_bytes")):
        sentences += [
            f"Decoding after {short(state[0])} tokens, a layer keeps {_from_to(state, size)} for one sequence."
        ]
    if time := _extremes(_column(rows, "decode", "context", "ms_per_token")):
        _, (fast, fastest), (slow, slowest) = time
        sentences += [
            f"There one more token takes from {fast:.2g} ms a layer ({fastest}) to {slow:.2g} ms ({slowest})."
        ]
    return sentences


def _from_to(found: Extremes, form: Callable[[object], str]) -> str:
    _, (least, least_name), (most, most_name) = found
    return f"from {form(least)} ({least_name}) to {form(most)} ({most_name})"


def _extremes(values: Column) -> Extremes | None:
    """The longest length that at least two rows reached, the least and the most there; None where they are alike."""
    counts = Counter(length for of_row in values.values() for length in of_row)
    longest = max((length for length, count in counts.items() if count > 1), default=None)
    if longest is None:
        return None
    shared = sorted((of_row[longest], name) for name, of_row in values.items() if longest in of_row)
    return (longest, shared[0], shared[-1]) if shared[-1][0] > _NOISE * shared[0][0] else None


def _column(rows: Sequence[Row], table: str, length: str, key: str) -> Column:
    return {row["name"]: {line[length]: line[key] for line in row[table]} for row in rows if row[table]}


def _times(rows: Sequence[Row]) -> Column:
    return _column(rows, "cost", "length", "forward_backward_ms")


def _score(score: dict[str, float], metric: str) -> str:
    if metric == "accuracy":
        return f"{100 * score['mean']:.1f} % ± {100 * score['spread']:.1f} right"
    return f"{score['mean']:.3f} ± {score['spread']:.3f} {metric}"


def _caution(order: list[Row], units: str) -> list[str]:
    if not order:
        return []
    tokens = [row["runs"][0]["curve"][-1]["tokens"] for row in order]
    least, most = readable_count(min(tokens)), readable_count(max(tokens))
    amount = least if least == most else f"{least} to {most}"
    return [
        f"Measured on models of {readable_count(order[0]['parameters'])} parameters after {amount} training {units} "
        "a run; a larger --budget and --size can change the order, so repeat it near your own scale before a costly "
        "decision."
    ]


def readable_count(count: float) -> str:
    """`1.5 million`, `120 thousand`."""
    for factor, word in ((1e9, " billion"), (1e6, " million"), (1e4, " thousand")):
        if count >= factor:
            return f"{count / (1e3 if factor == 1e4 else factor):.3g}{word}"
    return f"{count:.0f}"


def enumerated(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
