"""How many steps each task gets: for every mechanism as many as the slowest can take in the task's share of time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from attensor.catalogue import Domain
from attensor.compare.artefacts import Artefact
from attensor.compare.config import parse_budget
from attensor.compare.skills.body import build, skill_loss
from attensor.compare.skills.lesson import PILOT_SHARE, RATES, training_batch
from attensor.compare.skills.skill import SKILLS
from attensor.train import TrainConfig, train

if TYPE_CHECKING:
    from attensor.compare.plan import Plan
    from attensor.compare.skills.skill import Skill
    from attensor.compare.subjects import Subject

__all__ = [
    "FEWEST_STEPS",
    "Paces",
    "Steps",
    "check_skills",
    "common_steps",
    "load_steps",
    "measure_paces",
    "skills_seconds",
]

# of the time, for starting processes, calibration and scoring
_OVERHEAD = 0.15
FEWEST_STEPS = 20
_WARM_UP, _MEASURED = 2, 5


@dataclass(frozen=True)
class Paces(Artefact):
    """Of a mechanism: the width of its MLP, and for each task the seconds of a training step."""

    mlp_hidden_size: int
    seconds_per_step: dict[str, float]


@dataclass(frozen=True)
class Steps(Artefact):
    """Task -> optimizer steps, the same for every mechanism."""

    steps: dict[str, int]


def skills_seconds(plan: Plan) -> float | None:
    """The time that `--skills` gives the panel; None without it."""
    text = plan.config.get("skills")
    return None if text is None else parse_budget(text, "--skills")


def check_skills(plan: Plan) -> None:
    """Refuse the panel where its tasks cannot be done.

    Raises:
        ValueError: the mechanisms were chosen for images.
    """
    if skills_seconds(plan) is not None and plan.task.domain is not Domain.SEQUENCE:
        raise ValueError(
            f"--skills: its tasks are rows of tokens, and {plan.facts['name']} holds images. Leave the option out, or "
            "compare the mechanisms of text: --data stdlib."
        )


def measure_paces(subject: Subject, mlp_hidden_size: int, *, device: str) -> Paces:
    """Train each task for a few steps: medians of the seconds that pass, the load of the machine included."""
    return Paces(mlp_hidden_size, {one.name: _seconds(subject, one, mlp_hidden_size, device) for one in SKILLS})


def _seconds(subject: Subject, one: Skill, mlp_hidden_size: int, device: str) -> float:
    stamps: list[float] = []

    def stamp(_: object) -> bool:
        if device == "cuda":
            torch.cuda.synchronize()
        stamps.append(time.perf_counter())
        return True

    torch.manual_seed(0)
    # the forms take turns: every one counts as often
    turns = len(one.training)
    config = TrainConfig(_WARM_UP + _MEASURED * turns, min(RATES), evaluations=1)
    model = build(subject, one.vocab_size, mlp_hidden_size).to(device)
    train(
        model, lambda step: training_batch(one, step, device), skill_loss, config, evaluate=lambda _: 0.0, on_step=stamp
    )
    return statistics.median((b - a) / turns for a, b in pairwise(stamps[_WARM_UP - 1 :: turns]))


def common_steps(paces: Sequence[Paces], *, seconds: float, jobs: int, mechanisms: int) -> dict[str, int]:
    """Task -> steps.

    Args:
        paces: of all mechanisms that can be trained.
        seconds: for the whole panel.
        jobs: trainings that run at the same time.
        mechanisms: in the run, those that cannot be trained included.
    """
    share = (1 - _OVERHEAD) * seconds * jobs / max(mechanisms, jobs)
    slowest: Mapping[str, float] = {one.name: max(pace.seconds_per_step[one.name] for pace in paces) for one in SKILLS}
    trainings = 1 + PILOT_SHARE * (len(RATES) - 1)
    return {one.name: max(FEWEST_STEPS, int(share * one.share / slowest[one.name] / trainings)) for one in SKILLS}


def load_steps(run: Path) -> dict[str, int] | None:
    """What a run has decided; None before it has."""
    found = Steps.load(run / "skills.json")
    return None if found is None else found.steps
