"""A result in a notebook: the verdict, and a small table in which ties share a place."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

from attensor.compare.columns import flat_rows
from attensor.report.numbers import DASH, is_number, milliseconds, short, size

if TYPE_CHECKING:
    from attensor.compare.result import Result

__all__ = ["result_html"]


def result_html(result: Result) -> str:
    """HTML without scripts, styles of its own or anything that is loaded; all text in it is escaped."""
    results = result.results
    sentences = [case["sentence"] for case in result.verdict if case.get("sentence")] or result.answer
    rows = sorted(flat_rows(results), key=lambda row: (row["place"] is None, row["place"] or 0, _score_key(row)))
    accuracy = any(row["metric"] == "accuracy" for row in rows)
    score = "% right" if accuracy else "bits per byte"
    heads = ("place", "mechanism", score, "equal time", "one layer", "decoding", "state")
    withheld = (results.get("ranking") or {}).get("withheld")
    parts = [_listed(sentences), "<table><thead>", _line("th", heads), "</thead><tbody>"]
    places = [row["place"] for row in rows]
    parts += [_line("td", _cells(row, is_tied=places.count(row["place"]) > 1)) for row in rows]
    parts.append("</tbody></table>")
    if withheld:
        parts.append(f"<p>No ranking: {escape(str(withheld))}.</p>")
    elif any(place is not None and places.count(place) > 1 for place in places):
        parts.append("<p>= cannot be told apart by these seeds and this test.</p>")
    parts.append(f"<p>{escape(str(result.path))}</p>")
    return "".join(parts)


def _score_key(row: dict[str, Any]) -> tuple[bool, float]:
    score = row["score"]
    sign = -1 if row["metric"] == "accuracy" else 1
    return score is None, sign * (score or 0)


def _cells(row: dict[str, Any], *, is_tied: bool) -> list[str]:
    place = DASH if row["place"] is None else f"{row['place']}{' =' if is_tied else ''}"
    score = _score(row, "score") if row["status"] != "failed" else f"failed: {row['reason']}"
    layer = f"{milliseconds(row['forward_backward_ms'])} at {short(row['cost_length'])}"
    decode = f"{milliseconds(row['decode_ms'])} after {short(row['decode_context'])}"
    return [
        place,
        str(row["name"]),
        score,
        _score(row, "score_equal_time"),
        layer if row["cost_length"] is not None else DASH,
        decode if row["decode_context"] is not None else DASH,
        size(row["state_bytes"]),
    ]


def _score(row: dict[str, Any], key: str) -> str:
    """`2.143 (2.120 to 2.166)`: the mean with its interval."""
    factor, digits = (100, 1) if row["metric"] == "accuracy" else (1, 3)
    mean, low, high = (row[name] for name in (key, f"{key}_low", f"{key}_high"))
    if not is_number(mean):
        return DASH
    text = f"{factor * mean:.{digits}f}"
    return f"{text} ({factor * low:.{digits}f} to {factor * high:.{digits}f})" if is_number(low) else text


def _listed(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def _line(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
