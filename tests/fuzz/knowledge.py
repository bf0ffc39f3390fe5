"""Scorers of triples and the Tensor Brain: legal questions, and their rules."""

from __future__ import annotations

import random
from typing import Any

import torch

from tests.fuzz.calls import need, optional, pick
from tests.fuzz.operator_rules import NOTHING, shape

__all__ = ["KNOWLEDGE"]

Arguments = dict[str, Any]
SCORERS = ("DistMult", "CP", "ComplEx", "RESCAL", "Tucker")
BRAIN = "models.TensorBrain(models.TensorBrain.tiny)"  # 5 entities, 4 times, windows of 6 numbers, a state of 8


def _scores(rng: random.Random) -> tuple[str, dict[str, str]]:
    name = rng.choice(SCORERS)
    count = rng.choice([1, 3])
    asked = {"s": f"torch.randint(7, ({count},))", "p": f"torch.randint(6, ({count},))"}
    return f"models.{name}(models.{name}.tiny).scores", asked


def _of_scores(a: Arguments) -> str | None:
    return _indices(a, {"s": 7, "p": 6})


def _memory(rng: random.Random) -> tuple[str, dict[str, str]]:
    name, argument, bound = rng.choice([("recall", "time", 4), ("reason", "subject", 5)])
    asked = {argument: f"torch.randint({bound}, ({rng.choice([1, 3])},))"}
    feedback = {} if name == "reason" else optional(rng, 0.5, feedback=pick(rng, ["attention", "sample", None]))
    return f"{BRAIN}.{name}", asked | feedback


def _of_memory(a: Arguments) -> str | None:
    if "time" in a and a["time"].is_floating_point():
        need(a["time"].ndim == 2 and a["time"].shape[1] == 8, "time: no states")
        return "time: states"
    return _indices(a, {"time": 4} if "time" in a else {"subject": 5})


def _indices(a: Arguments, bounds: dict[str, int]) -> str | None:
    first = a[next(iter(bounds))]
    for name, bound in bounds.items():
        index = a[name]
        need(index.ndim == 1 and index.shape == first.shape, f"{name}: shape")
        need(index.dtype == torch.int64, f"{name}: other numbers")
        if index.device.type == "meta":
            return f"{name}: meta"
        need(not index.numel() or 0 <= int(index.min()) <= int(index.max()) < bound, f"{name}: outside")
        shape(a, name, [len(first)])
    return None if first.numel() else NOTHING


KNOWLEDGE: dict[str, Any] = {
    "Scorer.scores": (_scores, {"s": "*tensor:whole", "p": "*tensor:whole"}, _of_scores),
    "TensorBrain": (
        _memory,
        {"time": "*tensor", "subject": "*tensor:whole", "feedback": "choice?:attention|sample"},
        _of_memory,
    ),
}
