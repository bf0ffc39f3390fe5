"""A comparison at several sizes of the model: a run a size inside one folder, and on top what they say together.

Only the model differs: all sizes learn from the same batches. The largest is first: its budget gives the number of
steps, which the smaller ones then take, for less time.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from attensor.compare.columns import CSV_FILE, write_csv
from attensor.compare.config import CompareConfig
from attensor.compare.ended import Ended
from attensor.compare.folder import check_disk, refuse_contradictions
from attensor.compare.plan import PLAN_FILE, make_plan
from attensor.compare.result import RESULTS_FILE
from attensor.compare.scale import scale, scale_sentences
from attensor.files import locked, new_folder, read_json, write_json

__all__ = ["SIZES_FILE", "combined", "compare_sizes"]

SIZES_FILE = "sizes.json"
REPORT_FILE = "report.html"
_FIXED_BYTES = 20_000_000


def compare_sizes(
    config: CompareConfig, folder: Path, compare_one: Callable[..., Path], *, console: Console, command: str
) -> Path:
    """Run all sizes to their end, or continue them.

    Args:
        config: with several sizes, or with `resume`.
        folder: that of the earlier run with `resume`, else the one that gets a new folder.
        compare_one: `comparison.compare_one`.
        console: where progress and results are shown.
        command: what was typed.
    Returns:
        The folder with `results.json` of all sizes (the rows are those of the largest) and a folder a size.
    Raises:
        DataError, ValueError, OSError: found before the training: data, options, disk.
        Ended: as of `compare_one`; what is there has been written.
    """
    if config.resume is None:
        folder, kept = _new(config, folder, command)
    else:
        kept = read_json(folder / SIZES_FILE)
        refuse_contradictions(folder, kept["config"], config, {"resume"})
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in kept["config"].items()
    }
    config = CompareConfig(**options)
    with locked(folder):
        try:
            _each(config, folder, kept, compare_one, console)
        except Ended as end:
            raise Ended(folder, is_interrupted=end.is_interrupted) from None
        finally:
            _write(folder, kept, config, console)
    return folder


def _each(
    config: CompareConfig, folder: Path, kept: Mapping[str, Any], compare_one: Callable[..., Path], console: Console
) -> None:
    """A run a size, the largest first."""
    steps = config.steps
    for count, size in enumerate(reversed(config.sizes), 1):
        console.print(f"Size {size}, {count} of {len(config.sizes)}", style="bold", highlight=False)
        inner, into = folder / size, None
        if (inner / PLAN_FILE).exists():
            one = CompareConfig(resume=str(inner))
        else:
            one = replace(config, size=size, fit=False, length=kept["length"], batch_size=kept["batch_size"])
            one = one if steps is None else replace(one, steps=steps, budget=None)
            into = inner
        compare_one(one, console=console, command=kept["command"], into=into)
        steps = read_json(inner / RESULTS_FILE)["plan"]["steps"]


def _new(config: CompareConfig, out: Path, command: str) -> tuple[Path, dict[str, Any]]:
    """The new folder, and what is kept there."""
    now = datetime.now()
    created = now.isoformat(timespec="seconds")
    # the smallest decides what all learn from; the others are tried so that nothing is found out late
    each = [replace(config, size=size, fit=False) for size in config.sizes]
    plans = [make_plan(one, created=created, command=command) for one in each]
    check_disk(out, _FIXED_BYTES)
    folder = new_folder(out, f"{now:%Y-%m-%d_%H-%M-%S}")
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    kept: dict[str, Any] = {"created": created, "command": command, "config": options}
    kept |= {"length": plans[0].length, "batch_size": plans[0].batch_size}
    write_json(folder / SIZES_FILE, kept)
    return folder, kept


def _write(folder: Path, kept: Mapping[str, Any], config: CompareConfig, console: Console) -> None:
    from attensor.report import write_report
    from attensor.report.document import announce_report

    names = config.sizes
    by_size = {size: found for size in names if (found := read_json(folder / size / RESULTS_FILE)) is not None}
    if names[-1] not in by_size:
        return
    results = combined(by_size, kept, is_whole=len(by_size) == len(names), fit=config.fit)
    how = [] if results["finished"] else [f"Continue with: attensor compare --resume {shlex.quote(str(folder))}"]
    results["answer"] += how
    write_json(folder / RESULTS_FILE, results)
    write_csv(folder / CSV_FILE, results)
    console.print(f"All sizes: {', '.join(by_size)}", style="bold", highlight=False)
    for sentence in scale_sentences(results["scale"], results["quality"]["metric"]) + how:
        console.print(f"- {sentence}", highlight=False, markup=False, soft_wrap=True)
    announce_report(console, write_report, results, folder / REPORT_FILE)
    console.print(f"Results: {folder / RESULTS_FILE}", highlight=False, markup=False, soft_wrap=True)


def combined(
    by_size: Mapping[str, Mapping[str, Any]], kept: Mapping[str, Any], *, is_whole: bool, fit: bool
) -> dict[str, Any]:
    """The results of the largest size, with the field `scale`.

    Args:
        by_size: size -> its results, the smallest first.
        kept: when and how all was started.
        is_whole: whether these are all sizes.
        fit: whether to fit the power laws.
    """
    largest, results = list(by_size.items())[-1]
    rows = [
        {**row, "runs": [{**run, "checkpoint": f"{largest}/{run['checkpoint']}"} for run in row["runs"]]}
        for row in results["mechanisms"]
    ]
    found = scale(by_size, fit=fit)
    # how one size is continued is no way to continue all
    own_answer = [sentence for sentence in results["answer"] if "--resume" not in sentence]
    answer = [*own_answer, *scale_sentences(found, results["quality"]["metric"])]
    finished = is_whole and all(one["finished"] for one in by_size.values())
    own = {"created": kept["created"], "command": kept["command"], "finished": finished}
    return {**results, **own, "mechanisms": rows, "scale": found, "answer": answer}
