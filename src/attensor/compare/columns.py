"""results.csv: one row a mechanism, one column a number, for spreadsheets and pandas.

What varies with the length is told at one length, which has a column of its own; all of it is in results.json.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from attensor.files import write_text

__all__ = ["COLUMNS", "CSV_FILE", "Column", "csv_text", "flat_rows", "write_csv"]

CSV_FILE = "results.csv"

Row = Mapping[str, Any]
Kind = Literal["text", "integer", "number", "boolean"]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: in the first line.
        kind: of its values; each may be missing.
        meaning: with the unit.
        value: of results and one of their mechanisms.
    """

    name: str
    kind: Kind
    meaning: str
    value: Callable[[Row, Row], Any]


def flat_rows(results: Row) -> list[dict[str, Any]]:
    """The table: a row a mechanism, None where nothing is known.

    Args:
        results: as in results.json; parts that are missing give None.
    """
    return [{column.name: column.value(results, row) for column in COLUMNS} for row in results["mechanisms"]]


def csv_text(results: Row) -> str:
    """The table as comma-separated text with a head, lines ending in a line feed; what is unknown is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [column.name for column in COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat_rows(results))
    return text.getvalue()


def write_csv(path: Path, results: Row) -> None:
    """Write the table, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, csv_text(results))


def _get(place: Any, *keys: str) -> Any:
    """What lies at the end of the keys, None where the way ends."""
    for key in keys:
        place = place.get(key) if isinstance(place, Mapping) else None
    return place


def _own(*keys: str) -> Callable[[Row, Row], Any]:
    return lambda results, row: _get(row, *keys)


def _common(*keys: str) -> Callable[[Row, Row], Any]:
    return lambda results, row: _get(results, *keys)


def _place(*keys: str) -> Callable[[Row, Row], int | None]:
    """Number of the group, from 1; those of a group are not told apart and share it. None when nothing is ranked."""

    def value(results: Row, row: Row) -> int | None:
        if _get(results, "ranking", "withheld") is not None:
            return None
        groups = _get(results, "ranking", *keys, "groups") or []
        return next((i for i, group in enumerate(groups, 1) if row["name"] in group), None)

    return value


def _last(table: str, *keys: str) -> Callable[[Row, Row], Any]:
    """Of the longest measured length; of the decoding that of one sequence."""

    def value(results: Row, row: Row) -> Any:
        lines = [line for line in row.get(table) or [] if line.get("batch", 1) == 1]
        at = max(lines, key=lambda line: line.get("length", line.get("context", 0)), default=None)
        return _get(at, *keys)

    return value


def _count(results: Row, row: Row) -> int:
    return len(row.get("runs") or [])


def _tokens(results: Row, row: Row) -> int | None:
    ends = [run["curve"][-1].get("tokens") for run in row.get("runs") or [] if run.get("curve")]
    return max((int(end) for end in ends if end is not None), default=None)


def _machine(results: Row, row: Row) -> str | None:
    sources, index = results.get("merged"), row.get("machine")
    found = sources[index]["machine"] if sources and index is not None else results.get("machine")
    return f"{found.get('processor')} ({found.get('device')})" if found else None


def _state(results: Row, row: Row) -> int | None:
    found = _last("decode", "state_bytes")(results, row)
    return None if found is None else int(found)


def _scored(key: str, title: str) -> list[Column]:
    return [
        Column(key, "number", f"{title}, mean over the seeds, in units of `metric`", _own(key, "mean")),
        Column(f"{key}_low", "number", "lower end of its 95 % interval", _own(key, "low")),
        Column(f"{key}_high", "number", "upper end of it", _own(key, "high")),
    ]


COLUMNS: tuple[Column, ...] = (
    Column("name", "text", "mechanism", _own("name")),
    Column("title", "text", "in words", _own("title")),
    Column("source", "text", "`catalogue`, or `file.py:Class`", _own("source")),
    Column("status", "text", "`ok`, `failed` or `unfinished`", _own("status")),
    Column("reason", "text", "why it is not `ok`", _own("reason")),
    Column("place", "integer", "group in the ranking after equal tokens, from 1; ties share it", _place()),
    Column("place_equal_time", "integer", "the same after equal time", _place("equal_time")),
    Column("metric", "text", "`bits per byte` (lower is better) or `accuracy`", _common("quality", "metric")),
    *_scored("score", "test score at the training length"),
    Column("score_spread", "number", "half the distance from the worst seed to the best", _own("score", "spread")),
    *_scored("score_2x", "at twice the training length"),
    *_scored("score_4x", "at four times the training length"),
    *_scored("score_equal_time", "when the fastest mechanism had ended its training"),
    Column(
        "speedup",
        "number",
        "how much longer softmax must train for the same score",
        lambda results, row: _get(results, "speedup", row["name"], "factor"),
    ),
    Column("parameters", "integer", "of the whole model", _own("parameters")),
    Column("learning_rate", "number", "the one chosen", _own("learning_rate")),
    Column("at_edge", "boolean", "whether that is the smallest or largest tried", _own("at_edge")),
    Column("seeds", "integer", "finished trainings", _count),
    Column("steps", "integer", "of one training", _own("steps")),
    Column("tokens", "integer", "that one training has read", _tokens),
    Column("seconds_per_step", "number", "of the training, without the load", _own("seconds_per_step")),
    Column("load", "number", "of the machine during the training; 1 is idle", _own("load")),
    Column("train_tokens_per_second", "number", "of the training", _own("train_tokens_per_second")),
    Column("cost_length", "integer", "longest length at which one layer was measured", _last("cost", "length")),
    Column("forward_ms", "number", "milliseconds of one layer there", _last("cost", "forward_ms")),
    Column("forward_backward_ms", "number", "the same with gradients", _last("cost", "forward_backward_ms")),
    Column("peak_bytes", "integer", "memory of that", _last("cost", "peak_bytes")),
    Column("exponent_time", "number", "power of the length with which it grows", _own("exponent", "forward_backward")),
    Column("exponent_memory", "number", "the same of the memory", _own("exponent", "peak_bytes")),
    Column("decode_context", "integer", "longest context that was decoded, one sequence", _last("decode", "context")),
    Column("decode_ms", "number", "milliseconds of one layer for a token there", _last("decode", "ms_per_token")),
    Column("state_bytes", "integer", "what one layer keeps there", _state),
    Column("data", "text", "what was learned", _common("data", "name")),
    Column("size", "text", "of the model", _common("plan", "size")),
    Column("length", "integer", "training length", _common("plan", "length")),
    Column("machine", "text", "where speed and cost were measured", _machine),
    Column("paper", "text", "address", _own("paper")),
)
