"""Whether results may be merged: what must be equal, and what differs, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["refuse_differences"]

Row = Mapping[str, Any]

# of the plan, what may differ: which seeds, how long the costs went, how the number of steps was found
_FREE = {"seeds", "budget_seconds", "max_length", "kernels", "jobs"}
# of the data, what is only said of it
_SAID = {"name", "notes", "fingerprint"}


def refuse_differences(all_results: Sequence[Row], names: Sequence[str]) -> None:
    """Compare all with the first.

    Args:
        all_results: as in results.json.
        names: of the runs, for the message.
    Raises:
        ValueError: the first difference, with both values and what to do.
    """
    first = all_results[0]
    for other, name in zip(all_results[1:], names[1:], strict=True):
        for what, value, remedy in _MUST_AGREE:
            mine, its = value(first), value(other)
            if mine == its:
                continue
            if isinstance(mine, dict) and isinstance(its, dict):
                key = next(key for key in {**mine, **its} if mine.get(key) != its.get(key))
                what, mine, its = f"{what} {key}", mine.get(key), its.get(key)
            raise ValueError(
                f"merge: {names[0]} and {name} cannot be merged: {what} {_short(mine)} and {_short(its)}. {remedy}"
            )


def _plan(results: Row) -> dict[str, Any]:
    return {key: value for key, value in results["plan"].items() if key not in _FREE}


def _data(results: Row) -> dict[str, Any]:
    return {key: value for key, value in results["data"].items() if key not in _SAID}


def _digest(results: Row) -> Any:
    return (results.get("provenance") or {}).get("data_sha256") or results["data"].get("fingerprint") or None


def _dtype(results: Row) -> Any:
    return (results.get("machine") or {}).get("dtype")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


_REPEAT = "Repeat one of them with the options of the other."
# what, its value in results, and what to do where it differs; the plainest difference first
_MUST_AGREE: tuple[tuple[str, Callable[[Row], Any], str], ...] = (
    ("data:", _data, "They learned from different data."),
    ("the digest of the data", _digest, "They learned from different data."),
    ("plan:", _plan, f"{_REPEAT} The number of steps is given by --steps."),
    ("number format", _dtype, f"{_REPEAT} It is given by --dtype."),
    ("metric:", lambda results: results["quality"], "They were scored on different tests."),
)
