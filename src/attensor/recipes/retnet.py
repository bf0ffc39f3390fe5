"""Retention: fixed rates of forgetting do better than never forgetting.

Source: arXiv:2307.08621, section 3.5 (the ablation: without the decay gamma, perplexity rises).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attensor.nn.retention import Retention
from attensor.recipes._language import decoder, fit
from attensor.recipes._recipe import Chart, Check, Recipe, RecipeConfig, Verdict
from attensor.recipes._runs import measure

__all__ = ["RECIPE"]


class WithoutDecay(Retention):
    """Retention that never forgets."""

    def log_decay(self, hidden_states: Tensor) -> Tensor:
        """Zeros: [H]."""
        return torch.zeros_like(super().log_decay(hidden_states))


LAYERS = {"fixed decays": Retention, "no decay": WithoutDecay}


def train(layer: str, seed: int, steps: int) -> dict[str, Any]:
    """A small byte-level language model: its held-out loss."""
    model = decoder(lambda i: LAYERS[layer](64, 2), seed=seed, mlp_hidden_size=128)
    return fit(model, seed=seed, steps=steps, learning_rate=3e-3, length=256, batch_size=8)


def _run(config: RecipeConfig) -> Verdict:
    runs = measure(config, train, "layer", LAYERS, seeds=3, steps=60 if config.quick else 400)
    rise = runs.margin("no decay", "fixed decays", "loss.1")
    return Verdict(
        checks=(Check(f"without the decays the loss rises: by {rise} nats a byte", rise.mean > 0, rise, (0,)),),
        figures=runs.figures("loss, {}, nats a byte", "loss.1"),
        charts=(Chart("Training", "step", "nats a byte", runs.curves()),),
    )


RECIPE = Recipe(
    name="retnet",
    paper="arXiv:2307.08621, section 3.5",
    claim="retention with fixed decays per head has a lower held-out loss than the same model without decay",
    run=_run,
)
