"""`attensor reproduce NAME`: measure a claim in a folder of its own, say how it came out, and keep the evidence."""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import attensor
from attensor.bench.machine import processor
from attensor.files import locked, new_folder, read_json, write_json
from attensor.ops import kernels_form
from attensor.recipes import Recipe, RecipeConfig, Verdict, find
from attensor.recipes._claims import CLAIMS_FOLDER, write_claims
from attensor.recipes._report import write_report
from attensor.report.document import announce_report

__all__ = ["reproduce"]

PLAN_FILE, VERDICT_FILE, REPORT_FILE = "recipe.json", "verdict.json", "report.html"


def reproduce(
    name: str, console: Console, *, quick: bool = False, out: Path = Path("runs"), resume: Path | None = None
) -> tuple[Verdict, Path]:
    """Run a recipe, or go on with one that was interrupted; print the verdict, write verdict.json and report.html.

    Args:
        name: of the recipe, or of the card that points to it.
        console: where the verdict is shown.
        quick: fewer steps and seeds.
        out: folder that receives a new folder for the run.
        resume: folder of an earlier run of the same recipe; finished cells in it are not computed again.
    Returns:
        The verdict and the run's folder.
    Raises:
        ValueError: no such recipe, or `resume` holds no run, another recipe or other options.
        CellError: a part could not be computed.
        KeyboardInterrupt: Ctrl-C, after the command that goes on has been printed.
    """
    recipe = find(name)
    now = datetime.now()
    if resume is None:
        folder = new_folder(out, f"{now:%Y-%m-%d_%H-%M-%S}-{recipe.name}")
        kernels: str = kernels_form()
        write_json(folder / PLAN_FILE, {"recipe": recipe.name, "quick": quick, "kernels": kernels, "seconds": 0.0})
    else:
        folder = resume
        quick, kernels = _plan_of(folder, recipe, quick)
    config = RecipeConfig(folder=folder, quick=quick, resume=True, kernels=kernels)
    if recipe.minutes > Recipe.minutes and not quick:
        said = f"{recipe.name} takes up to {recipe.minutes} minutes on two cores; Ctrl-C keeps what is finished."
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    with locked(folder):
        verdict, seconds = _timed(recipe, config, console)
        found = _facts(recipe, verdict, config, now, seconds)
        write_json(folder / VERDICT_FILE, found)
        console.print(recipe.report(verdict, config))
        announce_report(console, write_report, found, folder / REPORT_FILE)
    return verdict, folder


def save(folder: Path, console: Console, *, to: Path = CLAIMS_FOLDER, page: Path | None = None) -> None:
    """Add the verdict of a run to the claims table.

    Args:
        folder: of a full run.
        console: where the written files are named.
        to: folder with one verdict a recipe.
        page: the table; `docs/claims.md` beside the benchmarks if None.
    Raises:
        ValueError: the run was a quick one.
    """
    found = read_json(folder / VERDICT_FILE)
    if found["quick"]:
        raise ValueError("--save: a quick run indicates and does not decide; run the recipe without --quick.")
    to.mkdir(parents=True, exist_ok=True)
    write_json(to / f"{found['recipe']}.json", found)
    written = write_claims(to, page)
    console.print(f"Saved: {to / found['recipe']}.json, {written}", highlight=False, markup=False, soft_wrap=True)


def _plan_of(folder: Path, recipe: Recipe, quick: bool) -> tuple[bool, str]:
    """Whether the run in `folder` is a quick one, and what its operators with C++ kernels take."""
    plan = read_json(folder / PLAN_FILE)
    if plan is None:
        raise ValueError(f"--resume {folder}: no run of a recipe is there.")
    if "kernels" not in plan:
        raise ValueError(f"--resume {folder}: that run is of an earlier version of attensor; start anew.")
    if plan["recipe"] != recipe.name:
        raise ValueError(f"--resume {folder}: that is a run of {plan['recipe']}, not of {recipe.name}.")
    if quick and not plan["quick"]:
        raise ValueError(f"--resume {folder}: that is a full run; leave out --quick.")
    return bool(plan["quick"]), str(plan["kernels"])


def _timed(recipe: Recipe, config: RecipeConfig, console: Console) -> tuple[Verdict, float]:
    """The verdict, and the seconds it took over all resumptions."""
    path = config.folder / PLAN_FILE
    plan = read_json(path)
    started = time.monotonic()
    try:
        verdict = recipe.run(config)
    except KeyboardInterrupt:
        again = shlex.join(["attensor", "reproduce", recipe.name, "--resume", str(config.folder)])
        console.print(f"Interrupted. Continue with: {again}", highlight=False, markup=False, soft_wrap=True)
        raise
    finally:
        plan["seconds"] += time.monotonic() - started
        write_json(path, plan)
    return verdict, plan["seconds"]


def _facts(recipe: Recipe, verdict: Verdict, config: RecipeConfig, now: datetime, seconds: float) -> dict[str, Any]:
    return {
        "schema": 2,
        "recipe": recipe.name,
        "paper": recipe.paper,
        "claim": recipe.claim,
        "outcome": verdict.outcome,
        "quick": config.quick,
        "checks": [
            {"text": one.text, "passed": one.passed, "interval": one.interval, "bounds": one.bounds, "mark": one.mark}
            for one in verdict.checks
        ],
        "figures": dict(verdict.figures),
        "charts": [dataclasses.asdict(chart) for chart in verdict.charts],
        "pictures": [dataclasses.asdict(picture) for picture in verdict.pictures],
        "command": f"attensor reproduce {recipe.name}{' --quick' if config.quick else ''}",
        "created": now.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "torch": torch.__version__,
        "attensor": attensor.__version__,
    }
