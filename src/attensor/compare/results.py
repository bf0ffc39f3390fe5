"""results.json: gathered from the artefacts of the workers, at any moment of a run.

The file is the only thing the report reads. Its fields, schema 1:

- `machine`, `data`, `plan`: what was run on what; `quality`: what the scores mean;
- `mechanisms`: a row each, in the order asked for. `status` is ok, failed (with `reason`) or unfinished;
  `pilots` and `learning_rate`; `runs` with curve and final scores at 1x, 2x, 4x the training length;
  `score`, `score_2x`, `score_4x` with mean and spread (half the range over the seeds);
  `cost` and `decode` of the mixer layer alone against length, with the reason where they stopped; `exponent` fits;
- `skills`: the panel, see `attensor.compare.skills.panel`, or null without `--skills`;
- `answer`: sentences computed from the rows.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

import attensor
from attensor import catalogue
from attensor.compare.artefacts import Balance, Measured, Pace, Pilot, SeedRun
from attensor.compare.conclusions import conclusions
from attensor.compare.fits import exponent
from attensor.compare.plan import Plan
from attensor.compare.skills import collect_skills, skills_sentences
from attensor.compare.subjects import Subject
from attensor.files import read_json, write_json

__all__ = ["RESULTS_FILE", "collect", "write_results"]

RESULTS_FILE = "results.json"
SCHEMA = 1
_PLAN_FIELDS = (
    *("size", "hidden_size", "num_layers", "num_heads", "length", "batch_size", "patch_size", "max_length", "seeds"),
    *("steps", "budget_seconds", "share_seconds", "learning_rates", "pilot_fraction", "kernels"),
)


def write_results(run: Path, plan: Plan) -> dict[str, Any]:
    """Gather, write `results.json`, and return what was written."""
    results = collect(run, plan)
    write_json(run / RESULTS_FILE, results)
    return results


def collect(run: Path, plan: Plan) -> dict[str, Any]:
    """The results of what is there now."""
    import torch

    from attensor.bench import processor

    rows = [_row(subject.folder(run), subject, plan) for subject in plan.subjects]
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "attensor": attensor.__version__,
        "torch": torch.__version__,
        "created": plan.created,
        "finished": all(row["status"] != "unfinished" for row in rows),
        "command": plan.command,
        "machine": {
            "processor": torch.cuda.get_device_name() if plan.device == "cuda" else processor(),
            "cores": os.cpu_count() or 1,
            "threads": plan.threads,
            "device": plan.device,
            "dtype": plan.dtype,
        },
        "data": plan.facts,
        "plan": {name: getattr(plan, name) for name in _PLAN_FIELDS},
        "quality": {"metric": plan.task.metric, "lower_is_better": plan.task.lower_is_better},
        "mechanisms": rows,
        "skills": collect_skills(run, plan),
    }
    concluded = conclusions(results)
    return results | concluded | {"answer": [*concluded["answer"], *skills_sentences(results["skills"])]}


def _row(folder: Path, subject: Subject, plan: Plan) -> dict[str, Any]:
    balance, pace = Balance.load(folder / "balance.json"), Pace.load(folder / "calibration.json")
    pilots = [p for i in range(len(plan.learning_rates)) if (p := Pilot.load(folder / f"pilot-{i}.json"))]
    runs = [r for seed in plan.seeds if (r := SeedRun.load(folder / f"seed-{seed}.json"))]
    cost, decode = (_measured(folder, name) for name in ("cost", "decode"))
    needed = [cost, decode] if plan.task.decodes else [cost]
    status, reason = _status(folder, len(runs) == len(plan.seeds) and all(measured.finished for measured in needed))
    return {
        "name": subject.name,
        "title": subject.title,
        "source": subject.source,
        "status": status,
        "reason": reason,
        "parameters": balance and balance.parameters,
        "mlp_hidden_size": balance and balance.mlp_hidden_size,
        "formula": _formula(subject),
        "learning_rate": runs[0].learning_rate if runs else None,
        "pilots": [{"learning_rate": p.learning_rate, "steps": p.steps, "score": p.score} for p in pilots],
        "steps": pace and pace.steps,
        "train_tokens_per_second": statistics.median(r.tokens_per_second for r in runs) if runs else None,
        "runs": [{k: getattr(r, k) for k in ("seed", "curve", "final", "checkpoint")} for r in runs],
        "score": _spread(runs, "1x", plan),
        "score_2x": _spread(runs, "2x", plan),
        "score_4x": _spread(runs, "4x", plan),
        "cost": cost.rows,
        "cost_stopped": cost.stopped,
        "exponent": {
            key.removesuffix("_ms"): exponent([(row["length"], row[key]) for row in cost.rows])
            for key in ("forward_ms", "forward_backward_ms", "peak_bytes")
        },
        "decode": decode.rows,
        "decode_stopped": decode.stopped,
    }


def _status(folder: Path, is_complete: bool) -> tuple[str, str | None]:
    failed = read_json(folder / "failed-train.json")
    if failed is not None:
        return "failed", str(failed.get("reason"))
    return ("ok" if is_complete else "unfinished"), None


def _measured(folder: Path, name: str) -> Measured:
    """Rows of a measurement; when its process failed, the reason counts as the end of it."""
    found = Measured.load(folder / f"{name}.json") or Measured()
    failed = read_json(folder / "failed-measure.json")
    if failed is not None and not found.finished:
        return Measured(found.rows, f"failed: {failed.get('reason')}", finished=True)
    return found


def _formula(subject: Subject) -> dict[str, str] | None:
    if len(subject.layers) != 1:
        return None
    card = catalogue.mechanism(subject.layers[0])
    return {"flops": card.flops, "state_bytes": card.state_bytes}


def _spread(runs: list[SeedRun], factor: str, plan: Plan) -> dict[str, float] | None:
    scores = [score for run in runs if (score := run.final[factor]) is not None]
    if len(scores) < len(plan.seeds):
        return None
    return {"mean": statistics.fmean(scores), "spread": (max(scores) - min(scores)) / 2}
