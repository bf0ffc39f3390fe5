"""The verdict: what to use for quality, for long contexts and for cheap decoding, how sure that is, at which price."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from attensor.compare.advice import BASELINE, code, price
from attensor.compare.pairs import ALPHA, Comparison
from attensor.compare.ranking import Ranking
from attensor.compare.readings import Readings, cheapest, decode_states, decode_times, layer_times
from attensor.compare.words import enumerated, gap_text, margin_of
from attensor.report.numbers import milliseconds, short, size

__all__ = ["CLEAR", "fastest_of", "verdict"]

Row = Mapping[str, Any]
Confidence = Literal["clear", "likely", "not decided"]

# p after Holm: clear up to this, likely up to ALPHA
CLEAR = 0.01
# a ratio of medians that makes an advantage clear, and of states that breaks a tie
_CLEAR_RATIO = 1.25


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
        """Those that are not clearly worse than the best by more than the margin, best first.

        All of them where nothing is decided.
        """
        first, *rest = comparison.order
        if self.ranking.withheld is not None:
            return list(comparison.order)
        return [first, *(name for name in rest if not comparison.is_worse(name, first, self.margin))]

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
        how = "as fast as any layer and with the smallest state" if is_tied else "the fastest layer"
        return f"Long contexts: use {use}, {how} at {short(at)} {judge.units}"

    return _cheapest_case(judge, "long", comparison, layer_times, sentence, key)


def _decode(judge: _Judge) -> dict[str, Any] | None:
    comparison = judge.ranking.tokens

    def sentence(use: str, at: int, is_tied: bool) -> str:
        row = judge.rows[use]
        what = f"Cheapest decoding: use {use}, {milliseconds(decode_times(row)[at].value)} for one more token"
        what += f" after {short(at)} {judge.units}"
        what += f" with {size(decode_states(row)[at].value)} of state a layer" if at in decode_states(row) else ""
        return what + (", as fast as any and with the smallest state" if is_tied else ", the least")

    return _cheapest_case(judge, "decode", comparison, decode_times, sentence, "score")


def _of_the_good(judge: _Judge, comparison: Comparison, use: str, others: list[str]) -> str:
    if not others:
        return "; all others are clearly worse in quality or did not get so far."
    if use == comparison.order[0]:
        return "; none has a better score."
    return f", of those that are not clearly worse than the best by more than {gap_text(judge.margin, judge.metric)}."


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
    rest = [times[name][at].value for name in there if name != use]
    is_clear = not by_state and (not rest or min(rest) >= _CLEAR_RATIO * times[use][at].value)
    confidence: Confidence = "clear" if is_clear and not _is_doubtful(judge, comparison, use) else "likely"
    text = sentence(use, at, by_state) + _of_the_good(judge, comparison, use, [name for name in there if name != use])
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


def _is_doubtful(judge: _Judge, comparison: Comparison, use: str) -> bool:
    """Whether its score is worse than the best by more than the margin, though that is not decided."""
    pair = comparison.pairs.get((comparison.order[0], use))
    return pair is not None and pair.found.value > judge.margin and pair.p > ALPHA
