"""The ranking: groups of ties, pairs, both rules; or the reason why it is withheld."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attensor.compare.curves import equal_time, equal_time_seconds, whole_seconds
from attensor.compare.pairs import ALPHA, Comparison, Pair, compared
from attensor.compare.statistics import Sample, samples, unit_weights
from attensor.compare.words import plural
from attensor.metrics.student import t_quantile

__all__ = ["LEAST_STEPS", "MOST_LOAD", "Ranking", "load_of", "rank"]

Row = Mapping[str, Any]
LEAST_STEPS = 50
MOST_LOAD = 1.5
# standard errors beyond the border for a power of 80 %
_POWER = 0.84
_MOST_SEEDS = 200
# references that know nothing of the context
_BLIND = ("unigram", "majority")


@dataclass(frozen=True)
class Ranking:
    """What the scores say about the order.

    Attributes:
        samples: final scores as costs, in the order of the rows.
        tokens: their comparison at equal tokens.
        time_samples, time: the same at equal time; None where the curves cannot tell.
        seconds: of the training of each at equal time.
        withheld: why nobody is called best, or None.
        minutes: of further training until the best two are told apart; infinite if that needs more test data, None if
            nothing is to be decided or no sensible time is enough.
    """

    samples: list[Sample]
    tokens: Comparison
    time_samples: list[Sample]
    time: Comparison | None
    seconds: float | None
    withheld: str | None
    minutes: float | None
    test: str

    @property
    def leaders(self) -> list[str]:
        """The leader with those that are not decided against it, best mean first; all where nothing is ranked."""
        if self.withheld is not None:
            return list(self.tokens.order)
        return self.tokens.groups[0] if self.tokens.order else []

    @property
    def best(self) -> str | None:
        """The one that is decidedly better than all others."""
        return self.leaders[0] if self.withheld is None and len(self.leaders) == 1 else None

    @property
    def changes_order(self) -> bool:
        """Whether the leader of one rule is decided against under the other, or a decided pair is turned round."""
        if self.time is None or self.withheld is not None:
            return False
        tokens, time = self.tokens, self.time
        turned = any(time.is_worse(better, worse) for (better, worse), pair in tokens.pairs.items() if pair.is_decided)
        return (
            turned or time.is_worse(tokens.order[0], time.order[0]) or tokens.is_worse(time.order[0], tokens.order[0])
        )

    def as_field(self) -> dict[str, Any]:
        """The field `ranking` of results.json."""
        seeds = min((len(sample.scores) for sample in self.samples), default=0)
        rows = [pair.as_row() for pair in self.tokens.shown]
        time = None
        if self.time is not None:
            groups = self.time.groups if self.withheld is None else [list(self.time.order)]
            time = {"groups": groups, "changes_order": self.changes_order, "seconds": self.seconds}
        return {
            "withheld": self.withheld,
            "alpha": ALPHA,
            "test": self.test,
            "smallest_p": 2.0 ** (1 - seeds) if seeds else 1.0,
            "groups": self.tokens.groups if self.withheld is None else [list(self.tokens.order)] * bool(self.samples),
            "pairs": rows if self.withheld is None else [row | {"decided": False} for row in rows],
            "equal_time": time,
            "minutes_to_decide": self.minutes if self.minutes is not None and math.isfinite(self.minutes) else None,
        }


def rank(results: Row) -> Ranking:
    """Compare the rows of results.json."""
    weights, found = unit_weights(results), samples(results)
    tokens = compared(found, weights)
    read = equal_time(results, found)
    time = compared(read, weights) if len(read) == len(found) > 1 else None
    withheld = _withheld(results, found)
    minutes = _minutes(results, tokens) if withheld is None and len(tokens.groups[0]) > 1 else None
    seconds = equal_time_seconds(results) if time is not None else None
    return Ranking(found, tokens, read, time, seconds, withheld, minutes, _test(results, found, weights is not None))


def _withheld(results: Row, found: Sequence[Sample]) -> str | None:
    if len(found) < 2:
        return "no mechanism has been trained to the end" if not found else "only one mechanism has a score"
    names = {sample.name for sample in found}
    rows = [row for row in results["mechanisms"] if row["name"] in names]
    reasons = []
    short = [row for row in rows if row.get("steps") is not None and row["steps"] < LEAST_STEPS]
    if short:
        least = min(row["steps"] for row in short)
        reasons.append(f"{plural(least, 'training step')} a seed, fewer than {LEAST_STEPS}")
    busy = [(load, row["name"]) for row in rows if (load := load_of(row) or 0.0) > MOST_LOAD]
    if busy:
        load, name = max(busy)
        reasons.append(
            f"the machine was busy with other work: {name} took {load:.1f} times as long to train as on an idle one"
        )
    if all(len(sample.scores) < 2 for sample in found):
        reasons.append("one seed, which shows no spread")
    if noise := _noise(results, found):
        reasons.append(noise)
    return "; ".join(reasons) or None


def load_of(row: Row) -> float | None:
    """The largest load under which it was trained: time taken over that of an idle machine."""
    loads = [row.get("load"), *(run.get("load") for run in row.get("runs") or [])]
    return max((load for load in loads if load is not None), default=None)


def _noise(results: Row, found: Sequence[Sample]) -> str | None:
    """The best score is no better than one that needs no model."""
    quality = results["quality"]
    sign, best = (1.0 if quality["lower_is_better"] else -1.0), min(sample.mean for sample in found)
    bounds = [("chance", quality.get("chance"))]
    bounds += [(one["name"], one.get("score")) for one in results.get("references") or [] if one["name"] in _BLIND]
    for name, bound in bounds:
        if bound is not None and best >= sign * bound:
            what = "chance" if name == "chance" else f"the reference {name}, which sees no context"
            return f"the scores are noise: no mechanism is better than {what}"
    return None


def _test(results: Row, found: Sequence[Sample], has_units: bool) -> str:
    quality = results["quality"]
    kind, count = "", 0
    if has_units:
        kind, count = quality["units"]["kind"], len(quality["units"]["weights"])
    has_units = has_units and any(sample.units for sample in found)
    sampling = (
        f"the choice of the {count} test {kind}s is added" if has_units else "the choice of the test data is not in it"
    )
    total = len(found) * (len(found) - 1) // 2
    moderated = "; the spread over seeds is moderated by that of all mechanisms (Smyth 2004)" if len(found) > 2 else ""
    return (
        f"Paired t test on the differences of each seed, assuming that they are roughly normal{moderated}; {sampling}; "
        f"p after Holm for {plural(total, 'comparison')}."
    )


def _minutes(results: Row, tokens: Comparison) -> float | None:
    """Of more seeds for all mechanisms in the leader's group, until the leader and the second are told apart."""
    group = tokens.groups[0]
    pair = tokens.pairs[group[0], group[1]]
    seconds = [whole_seconds(row) for row in results["mechanisms"] if row["name"] in group]
    if not pair.found.is_known or None in seconds or not pair.found.value:
        return None
    if pair.found.value <= (t_quantile(1 - ALPHA / 2, math.inf) + _POWER) * math.sqrt(pair.found.units):
        return math.inf
    seeds = _seeds_needed(pair, len(tokens.pairs))
    jobs = (results.get("plan") or {}).get("jobs") or 1
    each = sum(one for one in seconds if one is not None) / min(jobs, len(group)) / 60
    return None if seeds is None else each * max(1, seeds - pair.found.count)


def _seeds_needed(pair: Pair, comparisons: int) -> int | None:
    found = pair.found
    for seeds in range(found.count + 1, _MOST_SEEDS + 1):
        share = found.seeds * found.count / seeds
        freedom = found.seeds_freedom * (seeds - 1) / max(1, found.count - 1)
        border = t_quantile(1 - ALPHA / comparisons / 2, freedom) + _POWER
        if found.value >= border * math.sqrt(share + found.units):
            return seeds
    return None
