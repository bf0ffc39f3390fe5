"""Results of a comparison whose truth is known: schema 2, drawn from the model that the statistics assume, or not.

    score of mechanism m, seed s, test unit u =
        base + gap_m + difficulty_u + effect_s + seed_sd_m N + unit_sd N(m, u) + noise_sd N(m, s, u) / sqrt(share_u)

so that what is common to all mechanisms (difficult files, the order of the data) is in it too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Truth", "made_results"]

LENGTHS = (256, 1024, 4096, 16384)


@dataclass(frozen=True)
class Truth:
    """What is so of the simulated mechanisms, all numbers in bits per byte.

    Attributes:
        gaps: name -> how much worse than the base.
        seed_sd: spread of a seed, the same for all, or for each in their order.
        common_sd: spread of what a seed does to all of them.
        unit_sd: spread of what a test unit does to one mechanism.
        difficulty_sd: spread of the units' difficulty, common to all.
        noise_sd: spread that is left for a unit of average weight.
        units: how many.
        tail: spread of the logarithm of the units' sizes; 0 makes them equal.
        seeds: how many.
    """

    gaps: Mapping[str, float]
    seed_sd: float | Sequence[float] = 0.01
    common_sd: float = 0.02
    unit_sd: float = 0.02
    difficulty_sd: float = 0.3
    noise_sd: float = 0.02
    units: int = 40
    tail: float = 1.5
    seeds: int = 3
    base: float = 2.1


def made_results(truth: Truth, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Results drawn from the truth.

    Args:
        truth: what is so.
        seed: of the draws.
        changes: name of a mechanism -> fields of its row; `results` -> fields at the top. A dash is `_` in keywords.
    """
    generator = torch.Generator().manual_seed(seed)
    scores, weights = _scores(truth, generator)  # [mechanisms, seeds, units]
    finals = scores @ (weights / weights.sum())
    rows = [_row(name, scores[i], finals[i]) for i, name in enumerate(truth.gaps)]
    for row in rows:
        row.update(changes.get(row["name"].replace("-", "_"), {}))
    results = {
        "schema": 2,
        "protocol": {"name": "attensor-compare", "version": 3},
        "finished": True,
        "machine": {"processor": "Imaginary 3000", "cores": 2, "threads": 1, "device": "cpu", "dtype": "float32"},
        "data": {"name": "made", "kind": "text", "test_bytes": int(weights.sum()), "test_files": truth.units},
        "plan": {
            "rule": "tokens",
            "steps": 400,
            "seeds": list(range(truth.seeds)),
            "length": 128,
            "jobs": 1,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 2,
            "batch_size": 8,
            "budget_seconds": 150.0,
        },
        "quality": {
            "metric": "bits per byte",
            "lower_is_better": True,
            "chance": 8.0,
            "units": {"kind": "file", "weights": weights.tolist()},
        },
        "references": [],
        "mechanisms": rows,
    }
    return results | changes.get("results", {})


def _scores(truth: Truth, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mechanisms, seeds, units = len(truth.gaps), truth.seeds, truth.units
    weights = (truth.tail * normal(units)).exp()
    sizes = weights / weights.mean()
    gaps = torch.tensor(list(truth.gaps.values()), dtype=torch.float64)
    spread = torch.tensor(truth.seed_sd, dtype=torch.float64).expand(mechanisms)
    scores = truth.base + gaps[:, None, None] + truth.difficulty_sd * normal(units)
    scores = scores + (truth.common_sd * normal(seeds) + spread[:, None] * normal(mechanisms, seeds))[..., None]
    scores = scores + truth.unit_sd * normal(mechanisms, 1, units)
    return scores + truth.noise_sd * normal(mechanisms, seeds, units) / sizes.sqrt(), weights * 10_000


def _row(name: str, scores: torch.Tensor, finals: torch.Tensor) -> dict[str, Any]:
    runs = [
        {
            "seed": seed,
            "curve": _curve(float(finals[seed]) + 0.05),
            "final": {"1x": float(finals[seed]), "2x": float(finals[seed]) - 0.02, "4x": float(finals[seed]) - 0.03},
            "units": scores[seed].tolist(),
            "checkpoint": f"{name}/seed-{seed}.safetensors",
            "load": 1.0,
        }
        for seed in range(len(finals))
    ]
    return {
        "name": name,
        "title": name,
        "source": "catalogue",
        "status": "ok",
        "reason": None,
        "parameters": 123_456,
        "mlp_hidden_size": 128,
        "formula": None,
        "paper": None,
        "learning_rate": 6e-3,
        "at_edge": False,
        "pilots": [],
        "steps": 400,
        "seconds_per_step": 0.01,
        "load": 1.0,
        "train_tokens_per_second": 1e5,
        "runs": runs,
        "score": None,
        "score_2x": None,
        "score_4x": None,
        "score_equal_time": None,
        "cost": [cost(n, 3e-3 * n) for n in LENGTHS],
        "cost_stopped": None,
        "exponent": {"forward": 1.0, "forward_backward": 1.0, "peak_bytes": 1.0},
        "decode": [decode(n, 0.1, 4096) for n in LENGTHS],
        "decode_stopped": None,
        "generation": [],
        "missing": {},
    }


def _curve(last: float) -> list[dict[str, float]]:
    """A power law down to `last` at step 400: 2 bits above the asymptote at 1000 tokens."""
    steps = [round(400 * 2 ** ((i - 11) / 1.6)) for i in range(12)]
    end = (409_600 / 1000) ** -0.4
    return [
        {"step": s, "tokens": 1024 * s, "seconds": 0.01 * s, "score": last + 2 * ((1.024 * s) ** -0.4 - end)}
        for s in steps
    ]


def cost(length: int, milliseconds: float, noise: float = 0.02, peak_bytes: int | None = None) -> dict[str, Any]:
    """A row of the cost, whose quartiles are that fraction to either side."""
    forward = milliseconds / 3
    return {
        "length": length,
        "forward_ms": forward,
        "forward_quartiles": [forward * (1 - noise), forward * (1 + noise)],
        "forward_backward_ms": milliseconds,
        "forward_backward_quartiles": [milliseconds * (1 - noise), milliseconds * (1 + noise)],
        "peak_bytes": peak_bytes or 1000 * length,
        "flops": math.ceil(100 * length),
    }


def decode(context: int, milliseconds: float, state_bytes: int, noise: float = 0.02) -> dict[str, Any]:
    """A row of the decoding of one sequence."""
    quartiles = [milliseconds * (1 - noise), milliseconds * (1 + noise)]
    return {
        "context": context,
        "batch": 1,
        "ms_per_token": milliseconds,
        "quartiles": quartiles,
        "state_bytes": state_bytes,
    }
