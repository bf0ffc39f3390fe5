"""What the rows of results.json mean: the one entry of statistics, ranking, verdict and sentences.

    scores + test units -> statistics -> pairs -> ranking -> verdict -> answer
    curves -> equal time, effective speed-up;   costs -> crossings

Pure: nothing is read but the rows, and a run that is not finished, or of another machine, is concluded alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attensor.compare.advice import BASELINE
from attensor.compare.crossings import cost_crossings, quality_crossings
from attensor.compare.curves import speedup
from attensor.compare.pairs import Comparison, compared
from attensor.compare.ranking import LEAST_STEPS, MOST_LOAD, Ranking, load_of, rank
from attensor.compare.statistics import Sample, samples, score, unit_weights
from attensor.compare.summary import answer
from attensor.compare.verdict import verdict
from attensor.compare.words import plural
from attensor.report.numbers import size

__all__ = ["conclusions"]

Row = Mapping[str, Any]


def conclusions(results: Row) -> dict[str, Any]:
    """The fields that follow from the rows.

    Args:
        results: as in results.json, schema 2, without these fields; whatever is unknown may be missing or null.
    Returns:
        `mechanisms` with `score`, `score_2x`, `score_4x` and `score_equal_time`, `ranking`, `verdict`, `speedup`,
        `crossings`, `trust` and `answer`, to be put over the results.
    """
    ranking = rank(results)
    of_factor = {factor: samples(results, factor) for factor in ("1x", "2x", "4x")}
    rows = _scored(results, of_factor, ranking)
    results = {**results, "mechanisms": rows}
    weights = unit_weights(results)
    comparisons = {factor: compared(found, weights) for factor, found in of_factor.items() if len(found) > 1}
    crossings = cost_crossings(results, _worth_comparing(ranking))
    cases = verdict(results, ranking, comparisons.get("4x"))
    return {
        "mechanisms": rows,
        "ranking": ranking.as_field(),
        "verdict": cases,
        "speedup": speedup(results, ranking.samples if ranking.withheld is None else [], ranking.tokens, BASELINE),
        "crossings": crossings + _quality_crossings(results, comparisons, ranking),
        "trust": _trust(results, ranking),
        "answer": answer(results, ranking, cases),
    }


def _scored(results: Row, of_factor: Mapping[str, list[Sample]], ranking: Ranking) -> list[dict[str, Any]]:
    weights = unit_weights(results)
    fields = {"score": of_factor["1x"], "score_2x": of_factor["2x"], "score_4x": of_factor["4x"]}
    fields["score_equal_time"] = ranking.time_samples
    rows = [dict(row) | dict.fromkeys(fields) for row in results["mechanisms"]]
    for key, found in fields.items():
        scores = {sample.name: score(results, sample, weights) for sample in found}
        for row in rows:
            row[key] = scores.get(row["name"])
    return rows


def _worth_comparing(ranking: Ranking) -> list[str]:
    """The baseline and those in the lead."""
    return [BASELINE, *(name for name in ranking.leaders if ranking.withheld is None and name != BASELINE)]


def _quality_crossings(results: Row, comparisons: Mapping[str, Comparison], ranking: Ranking) -> list[dict[str, Any]]:
    length = (results.get("plan") or {}).get("length")
    if ranking.withheld is not None or not length or "1x" not in comparisons:
        return []
    return quality_crossings({int(factor[0]) * length: one for factor, one in comparisons.items()})


def _trust(results: Row, ranking: Ranking) -> dict[str, Any]:
    """What to know before believing the rest; `reasons` are the doubts, empty when there are none."""
    rows = [row for row in results["mechanisms"] if row["name"] in ranking.tokens.order]
    steps = [row["steps"] for row in rows if row.get("steps")]
    load = max((load for row in rows if (load := load_of(row)) is not None), default=None)
    edges = [row["name"] for row in rows if row.get("at_edge")]
    plan, quality = results.get("plan") or {}, results["quality"]
    return {
        "rule": _rule(plan, steps),
        "steps": min(steps, default=None),
        "seeds": len(plan.get("seeds") or []),
        "load": load,
        "edges": edges,
        "test_size": _test_size(results),
        "chance": quality.get("chance"),
        "reasons": _doubts(results, ranking, min(steps, default=None), load, edges),
    }


def _rule(plan: Row, steps: list[int]) -> str:
    """`equal tokens: 420 steps for all`, or what the plan calls it."""
    rule = plan.get("rule") or "tokens"
    amount = f": {plural(steps[0], 'step')} for all" if len(set(steps)) == 1 else ""
    return f"equal {rule}{amount}"


def _test_size(results: Row) -> str | None:
    """`1.14 MiB in 42 files`, `364 images`."""
    data = results.get("data") or {}
    if data.get("test_images") is not None:
        return plural(data["test_images"], "image")
    if data.get("test_bytes") is None:
        return None
    files = data.get("test_files")
    return size(data["test_bytes"]) + (f" in {plural(files, 'file')}" if files is not None else "")


def _doubts(results: Row, ranking: Ranking, steps: int | None, load: float | None, edges: list[str]) -> list[str]:
    doubts = []
    if ranking.withheld is not None:
        doubts.append(f"the ranking is withheld: {ranking.withheld}")
    if load is None and ranking.samples:
        doubts.append("the load of the machine is not known")
    elif load is not None and 1.2 < load <= MOST_LOAD:
        doubts.append(f"the machine was a little busy: {load:.1f} times the time of an idle one")
    if steps is not None and LEAST_STEPS <= steps < 2 * LEAST_STEPS:
        doubts.append(f"only {plural(steps, 'step')} of training")
    if edges:
        doubts.append(f"the best learning rate of {', '.join(edges)} is at the edge of those tried")
    weights = unit_weights(results)
    if weights is None:
        doubts.append("intervals are from the seeds alone: the scores of single test files or images are not known")
    elif float(weights.max()) > 0.5:
        doubts.append(f"one of the test {results['quality']['units']['kind']}s is more than half of the test data")
    if not results.get("finished", True):
        doubts.append("the run is not finished")
    return doubts
