"""Results of several runs as one: seeds of a mechanism pooled, mechanisms side by side, times never mixed.

Scores do not depend on the machine, times do: the merged rows have those of one machine, the one that measured most of
them, and what the others measured lies in `measured` of each row. Equal time takes the pace of that machine and the
curves of all seeds, so every mechanism that was trained there has it, whichever machines its other seeds are from.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from attensor.compare.columns import CSV_FILE, write_csv
from attensor.compare.conclusions import conclusions
from attensor.compare.result import RESULTS_FILE, Result
from attensor.compare.sameness import refuse_differences
from attensor.files import RUN_MARK, user_path, write_json

__all__ = ["merge", "merged"]

Row = Mapping[str, Any]
REPORT_FILE = "report.html"
# what a row says of the machine that it ran on, and what stands there where another machine is in the table
_EMPTY: dict[str, Any] = {
    "cost": [],
    "cost_stopped": None,
    "exponent": dict.fromkeys(("forward", "forward_backward", "peak_bytes")),
    "decode": [],
    "decode_stopped": None,
    "generation": [],
    "seconds_per_step": None,
    "train_tokens_per_second": None,
}
_NEEDS_THE_MACHINE = ("cost", "decode", "seconds_per_step", "train_tokens_per_second", "score_equal_time")
_ELSEWHERE = "measured on another machine, see `measured`: times of two machines are not compared"


def merge(*sources: str | os.PathLike[str], out: str | os.PathLike[str]) -> Result:
    """Put the results of runs of the same plan together, from as many machines as there are.

    Args:
        sources: folders of runs, or their results.json; merged ones too.
        out: new folder, which gets results.json and results.csv; `attensor merge` writes the report beside them.
    Returns:
        The merged results.
    Raises:
        ValueError: fewer than two, one is no run, they differ in protocol, data, sizes or steps (the difference is
            named), the same seed of a mechanism has two scores, or `out` is not empty.
        OSError: `out` cannot be written.
    """
    if len(sources) < 2:
        raise ValueError("merge: give at least two runs.")
    folder = user_path(os.fspath(out), "--out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out {folder}: is there already, and not empty. Give a new folder.")
    loaded = [Result.load(source) for source in sources]
    refuse_differences([one.results for one in loaded], [str(one.path) for one in loaded])
    results = merged(loaded, folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN_MARK).touch()
    write_json(folder / RESULTS_FILE, results)
    write_csv(folder / CSV_FILE, results)
    return Result(results, folder)


def merged(loaded: Sequence[Result], folder: Path) -> dict[str, Any]:
    """The merged results, with new conclusions.

    Args:
        loaded: results that `refuse_differences` lets pass.
        folder: where they will lie: files of models are named from there.
    Raises:
        ValueError: the same seed of a mechanism has two scores.
    """
    sources: list[dict[str, Any]] = []
    rows: dict[str, list[dict[str, Any]]] = {}
    for one in loaded:
        offset = len(sources)
        sources += _sources(one)
        for row in one.rows:
            rows.setdefault(row["name"], []).append(_own(row, one, offset, folder))
    machine = _most_used(sources, rows)
    mechanisms = [_pooled(parts, sources, machine) for parts in rows.values()]
    first = loaded[0].results
    trained = [row["runs"] for row in mechanisms if row["status"] == "ok"]
    fewest: list[dict[str, Any]] = min(trained, key=len, default=[])
    command = shlex.join(["attensor", "merge", *(str(one.path) for one in loaded), "--out", str(folder)])
    results: dict[str, Any] = {
        **{key: first.get(key) for key in ("schema", "protocol", "attensor", "torch", "data", "quality")},
        "created": datetime.now().isoformat(timespec="seconds"),
        "finished": all(one.results["finished"] for one in loaded),
        "command": command,
        "provenance": sources[machine]["provenance"],
        "machine": sources[machine]["machine"],
        # a mechanism with fewer seeds than the plan has none that count
        "plan": {**first["plan"], "seeds": [run["seed"] for run in fewest], "budget_seconds": None},
        "references": _references(loaded),
        "mechanisms": mechanisms,
        "skills": _skills(loaded),
        "scale": None,
        "merged": sources,
    }
    return results | conclusions(results)


def _sources(one: Result) -> list[dict[str, Any]]:
    """The runs behind results, which are themselves merged ones or one run."""
    results = one.results
    if results.get("merged"):
        return list(results["merged"])
    names = [row["name"] for row in one.rows]
    return [
        {
            "path": str(one.path),
            **{key: results.get(key) for key in ("created", "command", "machine", "provenance")},
            "seeds": results["plan"]["seeds"],
            "mechanisms": names,
        }
    ]


def _own(row: Row, one: Result, offset: int, folder: Path) -> dict[str, Any]:
    """A copy of a row whose files and machines are named as in the merged results."""
    measured = row.get("measured") or [{"machine": 0, **{key: row.get(key, _EMPTY[key]) for key in _EMPTY}}]
    measured = [{**each, "machine": each["machine"] + offset} for each in measured]
    runs = []
    for run in row["runs"]:
        checkpoint = run.get("checkpoint")
        path = checkpoint and os.path.relpath(one.path.absolute() / checkpoint, folder)
        runs.append({**run, "checkpoint": path, "machine": run.get("machine", 0) + offset})
    return {**row, "runs": runs, "measured": measured}


def _most_used(sources: Sequence[Row], rows: Mapping[str, list[dict[str, Any]]]) -> int:
    """The machine on which most mechanisms were measured: the first source on it."""
    counts: Counter[int] = Counter({0: 0})
    for parts in rows.values():
        there = {_same_machine(sources, each["machine"]) for part in parts for each in part["measured"] if each["cost"]}
        counts.update(there)
    return min(counts, key=lambda index: (-counts[index], index))


def _same_machine(sources: Sequence[Row], index: int) -> int:
    """The first source on a machine like that of source `index`."""
    return next(i for i, source in enumerate(sources) if _identity(source) == _identity(sources[index]))


def _identity(source: Row) -> tuple[Any, ...]:
    provenance = source.get("provenance") or {}
    return source["machine"], provenance.get("system"), provenance.get("backends")


def _pooled(parts: Sequence[dict[str, Any]], sources: Sequence[Row], machine: int) -> dict[str, Any]:
    """One row of those of one mechanism."""
    # a run that went well counts before one that failed
    row = dict(min(parts, key=lambda part: {"ok": 0, "unfinished": 1, "failed": 2}[part["status"]]))
    name: str = row["name"]
    runs: dict[int, dict[str, Any]] = {}
    for part in parts:
        if part["source"] != row["source"] or part["parameters"] not in (row["parameters"], None):
            raise ValueError(
                f"merge: {name} is not the same in both: {part['source']} of {part['parameters']} parameters and "
                f"{row['source']} of {row['parameters']}. Give one of them another name."
            )
        for run in part["runs"]:
            _refuse_another(name, runs.setdefault(run["seed"], run), run)
    measured = [each for part in parts for each in part["measured"]]
    here = [each for each in measured if _same_machine(sources, each["machine"]) == machine]
    # a run that was stopped after the training has a pace and no cost
    shown = next((each for key in ("cost", "seconds_per_step") for each in here if each[key]), None)
    row |= {key: shown[key] for key in _EMPTY} if shown else _EMPTY
    # another machine may have come into the table since
    missing = {key: why for key, why in (row.get("missing") or {}).items() if why != _ELSEWHERE}
    rates = sorted({part["learning_rate"] for part in parts if part["learning_rate"] is not None})
    if len(rates) > 1:
        row["learning_rate"] = None
        missing["learning_rate"] = f"{' and '.join(map(str, rates))}, each the best of its own run"
    if shown is None and any(each["cost"] for each in measured):
        missing |= dict.fromkeys(_NEEDS_THE_MACHINE, _ELSEWHERE)
    loads = [part["load"] for part in parts if part.get("load") is not None]
    return row | {
        "runs": [runs[seed] | {"machine": _same_machine(sources, runs[seed]["machine"])} for seed in sorted(runs)],
        "load": max(loads, default=None),
        "at_edge": _any(part.get("at_edge") for part in parts),
        "machine": machine if shown else None,
        "measured": measured,
        "missing": missing,
    }


def _refuse_another(name: str, kept: Row, run: Row) -> None:
    if kept is not run and (kept["final"], kept.get("units")) != (run["final"], run.get("units")):
        raise ValueError(
            f"merge: seed {run['seed']} of {name} is in two runs with different scores, {kept['final']['1x']} and "
            f"{run['final']['1x']}: it would count twice. Train other seeds: --first-seed {run['seed'] + 1} or more."
        )


def _any(values: Any) -> bool | None:
    known = [value for value in values if value is not None]
    return any(known) if known else None


def _skills(loaded: Sequence[Result]) -> dict[str, Any] | None:
    """The tasks, each with the mechanisms of all runs, a mechanism once."""
    tasks: dict[str, dict[str, Any]] = {}
    for one in loaded:
        for task in (one.results.get("skills") or {}).get("tasks") or []:
            kept = tasks.setdefault(task["name"], {**task, "rows": []})
            names = {row["name"] for row in kept["rows"]}
            kept["rows"] += [row for row in task["rows"] if row["name"] not in names]
    return {"tasks": list(tasks.values())} if tasks else None


def _references(loaded: Sequence[Result]) -> list[dict[str, Any]]:
    """Each by its name, with a score where one of the runs has it."""
    found: dict[str, dict[str, Any]] = {}
    for one in loaded:
        for reference in one.results.get("references") or []:
            if found.get(reference["name"], {}).get("score") is None:
                found[reference["name"]] = reference
    return list(found.values())
