"""The verdict: what to use for quality, for long contexts and for cheap decoding, how sure that is, at which price."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from attensor.compare.advice import BASELINE, code, price
from attensor.compare.pairs import Comparison
from attensor.compare.ranking import Ranking
from attensor.compare.readings import Readings, cheapest, decode_states, decode_times, layer_times
from attensor.compare.words import enumerated, gap_text, margin_of
from attensor.report.numbers import milliseconds, short, size

__all__ = ["CLEAR", "fastest_of", "verdict"]

Row = Mapping[str, Any]
Confidence = Literal["clear", "likely", "not decided"]

# p after Holm: clear up to this, likely beyond
CLEAR = 0.01
# a ratio of medians that makes an advantage clear, and of states that breaks a tie
_CLEAR_RATIO = 1.25
# a mechanism that is worse by more margins than this is not offered for its speed
_WORTH_A_WORD = 3


@dataclass(frozen=True)
class _Judge:
    """What the cases share."""

    results: Row
    ranking: Ranking
    rows: dict[str, Row]

    @property
    def metric(self) -> str:
        return str(self.results["quality"]["metric"])

    @property
    def units(self) -> str:
        return "tokens" if self.results["data"]["kind"] == "text" else "cells"

    @property
    def margin(self) -> float:
        return margin_of(self.metric)

    def good(self, comparison: Comparison) -> list[str]:
        """The best, and those that are certainly not worse than it by more than the margin: a choice among them does
        not change when a difference of the margin's size comes out a little larger. All where nothing is decided.
        """
        first, *rest = comparison.order
        if self.ranking.withheld is not None:
            return list(comparison.order)
        return [first, *(name for name in rest if self.disadvantage(comparison, name)[1] <= self.margin)]

    def disadvantage(self, comparison: Comparison, name: str) -> tuple[float, float]:
        """The interval of what a mechanism is worse than the best; without an end where it is not known."""
        row = comparison.pairs[comparison.order[0], name].as_row()
        return (-math.inf, math.inf) if row["low"] is None else (row["low"], row["high"])

    def case(
        self,
        case: str,
        use: str | None,
        among: Sequence[str],
        confidence: Confidence,
        sentence: str,
        *,
        key: str = "score",
        length: int | None = None,
    ) -> dict[str, Any]:
        row = self.rows[use] if use is not None else None
        value = row.get(key) if row else None
        return {
            "case": case,
            "use": use,
            "among": list(among),
            "score": value and value["mean"],
            "length": length,
            "price": price(self.results, row, length, is_shortest=case == "quality") if row else "",
            "confidence": confidence,
            "code": code(self.results, row) if row else "",
            "sentence": sentence,
        }


def verdict(results: Row, ranking: Ranking, longest: Comparison | None) -> list[dict[str, Any]]:
    """The cases that the measurements can speak of: `quality`, `long` and `decode`.

    Args:
        results: as in results.json, with the scores of the rows.
        ranking: of them.
        longest: comparison of the scores at 4x, or None where there are none.
    """
    judge = _Judge(results, ranking, {row["name"]: row for row in results["mechanisms"]})
    if not ranking.tokens.order:
        return []
    cases = [_quality(judge), _long(judge, longest), _decode(judge)]
    return [case for case in cases if case is not None]


def _quality(judge: _Judge) -> dict[str, Any]:
    length = (judge.results.get("plan") or {}).get("length")
    at = f" at {length} {judge.units}" if length and judge.units == "tokens" else ""
    ranking, leaders = judge.ranking, judge.ranking.leaders
    if ranking.withheld is not None:
        sentence = f"Best quality{at}: not decided, as the ranking is withheld."
        return judge.case("quality", None, leaders, "not decided", sentence, length=length)
    if ranking.best is None:
        sentence = f"Best quality{at}: any of {enumerated(leaders)}"
        if fastest := fastest_of(judge.rows, leaders):
            sentence += f"; {fastest} is the fastest of them to train"
        return judge.case("quality", None, leaders, "not decided", f"{sentence}.", length=length)
    use, *rest = ranking.tokens.order
    confidence: Confidence = "clear" if max(ranking.tokens.pairs[use, one].p for one in rest) <= CLEAR else "likely"
    cost = price(judge.results, judge.rows[use], length, is_shortest=True)
    sentence = f"Best quality{at}: use {use}"
    sentence += f", for {cost}." if cost and use != BASELINE else "."
    return judge.case("quality", use, leaders, confidence, sentence, length=length)


def fastest_of(rows: Mapping[str, Row], names: Sequence[str]) -> str | None:
    """The one of these whose layer is the fastest at the shortest length that all reached, outside the noise."""
    times = {name: layer_times(rows[name]) for name in names}
    common = set.intersection(*(set(one) for one in times.values()))
    best = cheapest(times, names, min(common)) if common else []
    return best[0] if len(best) == 1 < len(names) else None


def _long(judge: _Judge, longest: Comparison | None) -> dict[str, Any] | None:
    comparison = longest if longest is not None else judge.ranking.tokens
    key = "score_4x" if longest is not None else "score"

    def sentence(use: str, at: int, is_tied: bool) -> str:
        how = "as fast as any and with the smallest state" if is_tied else "the fastest"
        return f"Long contexts: use {use}, {how} of the best in quality at {short(at)} {judge.units}"

    return _cheapest_case(judge, "long", comparison, layer_times, sentence, key)


def _decode(judge: _Judge) -> dict[str, Any] | None:
    comparison = judge.ranking.tokens

    def sentence(use: str, at: int, is_tied: bool) -> str:
        row = judge.rows[use]
        what = f"Cheapest decoding: use {use}, {milliseconds(decode_times(row)[at].value)} for one more token"
        what += f" after {short(at)} {judge.units}"
        what += f" with {size(decode_states(row)[at].value)} of state a layer" if at in decode_states(row) else ""
        how = "as fast as any and with the smallest state" if is_tied else "the least"
        return f"{what}, {how} of the best in quality"

    return _cheapest_case(judge, "decode", comparison, decode_times, sentence, "score")


def _trade(judge: _Judge, comparison: Comparison, times: Mapping[str, Readings], use: str, at: int) -> str:
    """What is given away for quality: the fastest of those that are somewhat worse."""
    name = min(_quicker(judge, comparison, times, use, at), key=lambda one: times[one][at].value, default=None)
    if name is None:
        missing = [one for one in judge.good(comparison) if at not in times[one]]
        return f"; {enumerated(missing)} did not get so far" if missing else ""
    gap = gap_text(comparison.pairs[comparison.order[0], name].found.value, judge.metric)
    return f"; {name} takes {times[name][at].value / times[use][at].value:.2g}x the time, for a score {gap} worse"


def _quicker(judge: _Judge, comparison: Comparison, times: Mapping[str, Readings], use: str, at: int) -> list[str]:
    """Those that are faster outside the noise, and not good for certain, but not far from it either."""
    good = judge.good(comparison)
    return [
        name
        for name in comparison.order
        if name not in good and at in times[name]
        if comparison.pairs[comparison.order[0], name].found.value <= _WORTH_A_WORD * judge.margin
        if times[name][at].is_below(times[use][at])
    ]


def _cheapest_case(
    judge: _Judge,
    case: str,
    comparison: Comparison,
    reading: Callable[[Row], Readings],
    sentence: Callable[[str, int, bool], str],
    key: str,
) -> dict[str, Any] | None:
    """The least time at the longest length, of those whose quality is good; ties go to the smaller state."""
    times = {name: reading(judge.rows[name]) for name in comparison.order}
    good = [name for name in judge.good(comparison) if times[name]]
    at = max((max(times[name]) for name in good), default=None)
    if at is None:
        return None
    there = [name for name in good if at in times[name]]
    what = {"long": f"Long contexts ({short(at)} {judge.units})", "decode": "Cheapest decoding"}[case]
    if judge.ranking.withheld is not None:
        text = f"{what}: not decided, as the ranking is withheld."
        return judge.case(case, None, there, "not decided", text, key=key, length=at)
    tied = cheapest(times, there, at)
    use, by_state = _smallest_state(judge, tied)
    if use is None:
        text = f"{what}: any of {enumerated(tied)}, whose times cannot be told apart."
        return judge.case(case, None, tied, "not decided", text, key=key, length=at)
    quicker = _quicker(judge, comparison, times, use, at)
    if doubtful := [name for name in comparison.groups[0] if name in quicker]:
        gap = gap_text(judge.margin, judge.metric)
        text = f"{what}: {use}, or {enumerated(doubtful)} if worse by less than {gap}, which is not decided."
        return judge.case(case, None, [use, *doubtful], "not decided", text, key=key, length=at)
    rest = [times[name][at].value for name in there if name != use]
    is_clear = not by_state and (not rest or min(rest) >= _CLEAR_RATIO * times[use][at].value)
    confidence: Confidence = "clear" if is_clear else "likely"
    text = f"{sentence(use, at, by_state)}{_trade(judge, comparison, times, use, at)}."
    return judge.case(case, use, tied, confidence, text, key=key, length=at)


def _smallest_state(judge: _Judge, tied: Sequence[str]) -> tuple[str | None, bool]:
    """Of those within the noise, the one whose decode state is clearly the smallest, and whether that decided."""
    if len(tied) == 1:
        return tied[0], False
    states = {name: decode_states(judge.rows[name]) for name in tied}
    common = set.intersection(*(set(one) for one in states.values()))
    if not common:
        return None, True
    sizes = sorted((states[name][max(common)].value, name) for name in tied)
    is_smaller = sizes[0][0] * _CLEAR_RATIO <= sizes[1][0]
    return (sizes[0][1] if is_smaller else None), True
