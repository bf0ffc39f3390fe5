"""What a reader of the page chooses: a length, and equal tokens or equal time; and who leads under each choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from attensor.report.numbers import is_number, short
from attensor.report.reading import (
    Mechanism,
    Results,
    field,
    length_name,
    lengths,
    ordered,
    score_at,
    sign,
    tied_places,
    trained_length,
)

__all__ = ["RULES", "Choice", "choices", "default_choice", "length_text", "places", "ranked"]

RULES = {"tokens": "equal tokens", "time": "equal time"}


@dataclass(frozen=True)
class Choice:
    """A length, None where the data have no lengths, and a rule of `RULES`."""

    length: int | None
    rule: str

    @property
    def key(self) -> str:
        """The choice as the page's script spells it."""
        return f"{self.length or ''} {self.rule}"


def choices(results: Results) -> list[Choice]:
    """All choices; equal time only where there are scores for it."""
    rules = ["tokens"]
    if any(is_number(field(m, "score_equal_time", "mean")) for m in results["mechanisms"]):
        rules.append("time")
    known: list[int | None] = [*lengths(results)] or [None]
    return [Choice(length, rule) for length in known for rule in rules]


def default_choice(results: Results) -> Choice:
    """The training length, or for images the first measured one, at equal tokens."""
    trained = trained_length(results)
    known = lengths(results)
    return Choice(trained if trained in known else (known[0] if known else None), "tokens")


def length_text(results: Results, length: int | None) -> str:
    """`512 tokens (2x)`, where 1x is the length that was trained on."""
    trained = trained_length(results)
    if length is None:
        return ""
    times = "" if trained is None else f" ({length / trained:g}x)"
    return f"{short(length)} {length_name(results)}{times if length < 8 * (trained or 0) else ''}"


def ranked(results: Results, choice: Choice) -> list[Mechanism]:
    """The mechanisms that have a score under a choice, best first, unfinished ones left out."""

    def mean(mechanism: Mechanism) -> object:
        return field(score_at(results, mechanism, choice.length, choice.rule)[0], "mean")

    rows = [results["mechanisms"][i] for i in ordered(results, mean)]
    return [row for row in rows if is_number(mean(row)) and row.get("status") == "ok"]


def places(results: Results, choice: Choice) -> dict[str, tuple[int, bool]]:
    """Name -> place and whether it is shared: by the test where trained, elsewhere by overlapping intervals."""
    rows = ranked(results, choice)
    if field(results, "ranking", "withheld"):
        return {}
    scores = [score_at(results, row, choice.length, choice.rule) for row in rows]
    if all(length == trained_length(results) for _, length in scores):
        return tied_places(results, choice.rule)
    intervals = [
        (str(row.get("name")), sorted(sign(results) * score[end] for end in ("low", "high")))
        for row, (score, _) in zip(rows, scores, strict=True)
        if is_number(field(score, "low")) and is_number(field(score, "high"))
    ]
    found: dict[str, tuple[int, bool]] = {}
    place = 1
    for group in _overlapping(intervals):
        found |= {name: (place, len(group) > 1) for name in group}
        place += len(group)
    return found


def _overlapping(intervals: Sequence[tuple[str, Sequence[float]]]) -> Iterator[list[str]]:
    """Groups of names, each of those whose interval begins before that of its first one ends."""
    group: list[str] = []
    end = 0.0
    for name, (low, high) in intervals:
        if group and low > end:
            yield group
            group = []
        end = high if not group else end
        group.append(name)
    if group:
        yield group
