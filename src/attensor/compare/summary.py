"""The answer: sentences that say in plain words what the numbers mean.

Nothing here knows a mechanism by name: every sentence is computed from the rows of results.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attensor.compare.curves import final_tokens
from attensor.compare.ranking import Ranking
from attensor.compare.verdict import fastest_of
from attensor.compare.words import enumerated, gap_text, margin_of, plural, readable_count, score_text

__all__ = ["answer"]

Row = Mapping[str, Any]
# more further training than this, in minutes, is no advice
_MOST_MINUTES = 24 * 60


def answer(results: Row, ranking: Ranking, verdict: Sequence[Row]) -> list[str]:
    """What to pick, and why, in sentences.

    Args:
        results: as in results.json; rows without a score are left out of what they cannot support.
        ranking: of the rows.
        verdict: the cases; the first sentence says who is best, so the case of a tie is left out here.
    """
    sentences = [_first(results, ranking), *_ties(results, ranking), *_references(results, ranking)]
    if ranking.withheld is None:
        sentences += [case["sentence"] for case in verdict if case["case"] != "quality" or case["use"] is not None]
    for row in results["mechanisms"]:
        if row["status"] == "failed":
            sentences.append(f"{row['name']} has no result: {str(row.get('reason') or 'unknown').rstrip('.')}.")
    return sentences + _unfinished(results, ranking) + _caution(results, ranking)


def _first(results: Row, ranking: Ranking) -> str:
    order, names = ranking.tokens.order, ranking.leaders
    if not order:
        return "No mechanism has been trained to the end, so there is no ranking."
    if ranking.withheld is not None:
        return f"No ranking: {ranking.withheld}."
    metric, means = results["quality"]["metric"], {s.name: s.mean for s in ranking.samples}
    sign = 1.0 if results["quality"]["lower_is_better"] else -1.0
    rule = "After equal tokens" if results["data"]["kind"] == "text" else "After equally many images"
    score = score_text(sign * means[names[0]], metric)
    if ranking.best is not None:
        found = f"{rule}, {names[0]} is best: {score}"
    else:
        found = (
            f"{rule}, the best is not decided: {enumerated(names)} cannot be told apart, led by {names[0]} with {score}"
        )
    return f"{found}; {_other_rule(ranking)}."


def _other_rule(ranking: Ranking) -> str:
    if ranking.time is None:
        return "what equal time would say is not known"
    if not ranking.changes_order:
        return "equal time does not change that order"
    leaders = ranking.time.groups[0]
    if leaders == ranking.leaders:
        return "equal time changes the order behind"
    return f"after equal time {enumerated(leaders)} {'leads' if len(leaders) == 1 else 'lead'}"


def _ties(results: Row, ranking: Ranking) -> list[str]:
    """What it would take to tell the first two apart, and who is certainly not the best."""
    if ranking.withheld is not None or not ranking.tokens.order:
        return []
    metric, leaders = results["quality"]["metric"], ranking.leaders
    behind = [name for name in ranking.tokens.order if name not in leaders]
    sentences = []
    if len(leaders) > 1:
        first, second = leaders[:2]
        pair = ranking.tokens.pairs[first, second]
        gap = f"To tell {first} from {second} ({gap_text(pair.found.value, metric)} apart)"
        most, margin = pair.found.interval()[1], margin_of(metric)
        if most <= margin:
            sentences.append(f"{first} and {second} differ by less than {gap_text(margin, metric)}: take either.")
        elif ranking.minutes is None or _MOST_MINUTES < ranking.minutes < math.inf:
            sentences.append(f"{first} and {second} are too close for any sensible number of seeds.")
        elif math.isinf(ranking.minutes):
            sentences.append(f"{gap} needs more test data: no number of seeds is enough.")
        else:
            minutes = plural(max(1, round(ranking.minutes)), "more minute")
            sentences.append(f"{gap} needs about {minutes} of training (more --seeds).")
    if len(leaders) > 1 and (fastest := fastest_of({row["name"]: row for row in results["mechanisms"]}, leaders)):
        sentences.append(f"{fastest} is the fastest of them to train.")
    if len(leaders) > 1 and behind:
        verb = "is" if len(behind) == 1 else "are"
        sentences.append(f"{enumerated(behind)} {verb} worse than {leaders[0]}.")
    return sentences


def _references(results: Row, ranking: Ranking) -> list[str]:
    """The best reference, and who loses to it."""
    quality, order = results["quality"], ranking.tokens.order
    sign = 1.0 if quality["lower_is_better"] else -1.0
    known = [(sign * one["score"], one) for one in results.get("references") or [] if one.get("score") is not None]
    if not known or not order:
        return []
    best, reference = min(known, key=lambda both: both[0])
    means = {sample.name: sample.mean for sample in ranking.samples}
    losers = [name for name in order if means[name] >= best]
    title, score = reference.get("title") or reference["name"], score_text(sign * best, quality["metric"])
    if not losers:
        return [] if ranking.withheld else [f"All are better than the best reference, {title} ({score})."]
    who = "Every mechanism" if len(losers) == len(order) else enumerated(losers)
    verb = "loses" if len(losers) == 1 or len(losers) == len(order) else "lose"
    return [
        f"{who} {verb} to {title} ({score}), which has no attention: trained for so little, a model has not yet "
        "learned what that can do, and its rank says little about larger ones."
    ]


def _unfinished(results: Row, ranking: Ranking) -> list[str]:
    rows = [row for row in results["mechanisms"] if row["status"] == "unfinished"]
    scored = [row["name"] for row in rows if row["name"] in ranking.tokens.order]
    others = [row["name"] for row in rows if row["name"] not in ranking.tokens.order]
    sentences = []
    if scored:
        sentences.append(f"Trained, but not measured to the end: {enumerated(scored)}.")
    if others:
        sentences.append(f"Not trained to the end: {enumerated(others)}.")
    return sentences


def _caution(results: Row, ranking: Ranking) -> list[str]:
    rows = [row for row in results["mechanisms"] if row["name"] in ranking.tokens.order]
    tokens, sizes = [t for row in rows if (t := final_tokens(row))], [p for row in rows if (p := row.get("parameters"))]
    if not tokens or not sizes:
        return []
    units = "tokens" if results["data"]["kind"] == "text" else "cells"
    least, most = readable_count(min(tokens)), readable_count(max(tokens))
    amount = least if least == most else f"{least} to {most}"
    return [
        f"Measured on models of {readable_count(sizes[0])} parameters after {amount} training {units} a seed; a larger "
        "--budget and --size can change the order, so repeat it near your own scale before a costly decision."
    ]
