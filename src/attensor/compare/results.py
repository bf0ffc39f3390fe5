"""results.json: gathered from the artefacts of the workers, at any moment of a run.

The file is the only thing the report reads. `docs/results-schema.md` describes its fields, schema 2. What follows from
the rows alone (scores with intervals, ranking, verdict, answer) is computed by `conclusions`.
"""

from __future__ import annotations

import shlex
import statistics
from pathlib import Path
from typing import Any

import attensor
from attensor import catalogue
from attensor.compare.artefacts import Balance, Measured, Pilot, Schedule, SeedRun
from attensor.compare.columns import CSV_FILE, write_csv
from attensor.compare.conclusions import conclusions
from attensor.compare.fits import exponent
from attensor.compare.folder import is_measured
from attensor.compare.pace import SCHEDULE_FILE, paces
from attensor.compare.pilots import is_at_edge
from attensor.compare.plan import Plan
from attensor.compare.prepare import reference_rows
from attensor.compare.provenance import machine, provenance
from attensor.compare.result import PROTOCOL, RESULTS_FILE, SCHEMA
from attensor.compare.skills import collect_skills, skills_are_done, skills_sentences
from attensor.compare.subjects import Subject
from attensor.files import read_json, write_json

__all__ = ["RESULTS_FILE", "collect", "write_results"]

_PLAN_FIELDS = (
    *("size", "hidden_size", "num_layers", "num_heads", "length", "batch_size", "patch_size", "counts", "max_length"),
    *("seeds", "budget_seconds", "learning_rates", "pilot_fraction", "kernels", "jobs"),
)


# fields that follow from the training
_OF_TRAINING = (
    *("parameters", "mlp_hidden_size", "learning_rate", "at_edge", "steps", "seconds_per_step", "load"),
    *("train_tokens_per_second", "score", "score_2x", "score_4x", "score_equal_time"),
)


def write_results(run: Path, plan: Plan) -> dict[str, Any]:
    """Gather, write `results.json` and the table of it, `results.csv`, and return what was written."""
    results = collect(run, plan)
    write_json(run / RESULTS_FILE, results)
    write_csv(run / CSV_FILE, results)
    return results


def collect(run: Path, plan: Plan) -> dict[str, Any]:
    """The results of what is there now."""
    import torch

    schedule = Schedule.load(run / SCHEDULE_FILE)
    rows = [_row(run, subject, plan, schedule) for subject in plan.subjects]
    is_finished = all(
        row["status"] == "failed" or (row["status"] == "ok" and _is_measured(run, subject, plan))
        for row, subject in zip(rows, plan.subjects, strict=True)
    )
    task = plan.task
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "attensor": attensor.__version__,
        "torch": torch.__version__,
        "created": plan.created,
        "finished": is_finished,
        "command": plan.command,
        "provenance": provenance(plan),
        "machine": machine(plan),
        "data": plan.facts,
        "plan": {name: getattr(plan, name) for name in _PLAN_FIELDS}
        | {"rule": "tokens", "steps": schedule.steps if schedule else plan.steps},
        "quality": {
            "metric": task.metric,
            "lower_is_better": task.lower_is_better,
            "chance": task.chance(plan.facts),
            "units": plan.units,
        },
        "references": reference_rows(run),
        "mechanisms": rows,
        "skills": collect_skills(run, plan),
    }
    results |= conclusions(results)
    for row, subject in zip(results["mechanisms"], plan.subjects, strict=True):
        row["missing"] = _missing(row, subject, plan, _measured(subject.folder(run), "generation").stopped)
    how = [] if is_finished else [f"Continue with: attensor compare --resume {shlex.quote(str(run))}"]
    return results | {"answer": [*results["answer"], *skills_sentences(results["skills"]), *how]}


def _is_measured(run: Path, subject: Subject, plan: Plan) -> bool:
    """Whether nothing more will be measured of a mechanism."""
    failed = read_json(subject.folder(run) / "failed-measure.json")
    return (failed is not None or is_measured(run, subject, plan)) and skills_are_done(run, plan, subject)


def _at_edge(pilots: list[Pilot], plan: Plan) -> bool | None:
    return is_at_edge(pilots, plan.learning_rates, lower_is_better=plan.task.lower_is_better)


def _row(run: Path, subject: Subject, plan: Plan, schedule: Schedule | None) -> dict[str, Any]:
    folder = subject.folder(run)
    balance, pace = Balance.load(folder / "balance.json"), paces(run, [subject]).get(subject.name)
    pilots = _numbered(folder, "pilot", Pilot)
    runs = [r for seed in plan.seeds if (r := SeedRun.load(folder / f"seed-{seed}.json"))]
    cost, decode, generation = (_measured(folder, name) for name in ("cost", "decode", "generation"))
    status, reason = _status(folder, is_trained=len(runs) == len(plan.seeds))
    return {
        "name": subject.name,
        "title": subject.title,
        "source": subject.source,
        "status": status,
        "reason": reason,
        "parameters": balance and balance.parameters,
        "mlp_hidden_size": balance and balance.mlp_hidden_size,
        **_card_facts(subject),
        "learning_rate": runs[0].learning_rate if runs else None,
        "at_edge": _at_edge(pilots, plan) if runs else None,
        "pilots": [{k: getattr(p, k) for k in ("learning_rate", "steps", "score", "reason")} for p in pilots],
        "steps": schedule and schedule.steps,
        "seconds_per_step": _median(runs, "seconds_per_step") or (pace and pace.seconds_per_step),
        "load": max((r.machine_load for r in runs), default=pace and pace.machine_load),
        "train_tokens_per_second": _median(runs, "tokens_per_second"),
        "runs": [
            {k: getattr(r, k) for k in ("seed", "curve", "final", "units", "checkpoint")} | {"load": r.machine_load}
            for r in runs
        ],
        "cost": cost.rows,
        "cost_stopped": cost.stopped,
        "exponent": {
            key.removesuffix("_ms"): exponent([(line["length"], line[key]) for line in cost.rows])
            for key in ("forward_ms", "forward_backward_ms", "peak_bytes")
        },
        "decode": decode.rows,
        "decode_stopped": decode.stopped,
        "generation": generation.rows,
    }


def _numbered(folder: Path, name: str, kind: type[Pilot]) -> list[Pilot]:
    """The artefacts `NAME-0.json`, `NAME-1.json` and so on, by learning rate."""
    found: list[Pilot] = []
    while (next_one := kind.load(folder / f"{name}-{len(found)}.json")) is not None:
        found.append(next_one)
    return sorted(found, key=lambda pilot: pilot.learning_rate)


def _status(folder: Path, *, is_trained: bool) -> tuple[str, str | None]:
    for phase in ("calibrate", "train"):
        failed = read_json(folder / f"failed-{phase}.json")
        if failed is not None and not is_trained:
            return "failed", str(failed.get("reason"))
    return ("ok", None) if is_trained else ("unfinished", "the run was stopped before its training had ended")


def _measured(folder: Path, name: str) -> Measured:
    """Rows of a measurement; when its process failed, the reason counts as the end of it."""
    found = Measured.load(folder / f"{name}.json") or Measured()
    failed = read_json(folder / "failed-measure.json")
    if failed is not None and not found.finished:
        return Measured(found.rows, f"failed: {failed.get('reason')}", finished=True)
    return found


def _card_facts(subject: Subject) -> dict[str, Any]:
    """What the card of a single mechanism says: its formulas and its paper."""
    if len(subject.layers) != 1:
        return {"formula": None, "paper": None}
    card = catalogue.mechanism(subject.layers[0])
    return {
        "formula": {"flops": card.flops, "state_bytes": card.state_bytes},
        "paper": card.paper.url,
    }


def _median(runs: list[SeedRun], name: str) -> float | None:
    return statistics.median(getattr(run, name) for run in runs) if runs else None


def _missing(row: dict[str, Any], subject: Subject, plan: Plan, no_generation: str | None) -> dict[str, str]:
    """Of each field that is null, or empty where there should be rows, the reason."""
    reasons = dict.fromkeys(_OF_TRAINING, row["reason"] or "not trained")
    if row["status"] == "ok":
        reasons["score_equal_time"] = "its curve does not reach as far as equal time asks, or that time is not known"
        reasons["at_edge"] = "one learning rate was given, so that there was no choice"
        reasons["score_2x"] = reasons["score_4x"] = f"{plan.kind} of one size"
    own = "your own class has no card" if subject.path else "layers that take turns have no card of their own"
    reasons["formula"] = own
    reasons["paper"] = own
    not_measured = f"failed: {row['reason']}" if row["status"] == "failed" else "not measured yet"
    reasons["cost"] = row["cost_stopped"] or not_measured
    no_decode = row["decode_stopped"] or not_measured
    reasons["decode"] = no_decode if plan.task.decodes else f"{plan.kind} are not decoded"
    reasons["generation"] = (no_generation or not_measured) if plan.task.decodes else reasons["decode"]
    return {name: reason for name, reason in reasons.items() if row[name] is None or row[name] == []}
