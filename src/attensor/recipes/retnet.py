"""Retention: fixed rates of forgetting do better than never forgetting.

Source: arXiv:2307.08621, section 3.5 (the ablation: without the decay gamma, perplexity rises).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attensor.models.language import Decoder, DecoderConfig
from attensor.nn.retention import Retention
from attensor.recipes._language import fit, mean_curve
from attensor.recipes._recipe import Chart, Check, Interval, Recipe, RecipeConfig, Verdict, run_cells

__all__ = ["RECIPE"]


class WithoutDecay(Retention):
    """Retention that never forgets."""

    def log_decay(self, hidden_states: Tensor) -> Tensor:
        """Zeros: [H]."""
        return torch.zeros_like(super().log_decay(hidden_states))


LAYERS = {"fixed decays": Retention, "no decay": WithoutDecay}


def train(layer: str, seed: int, steps: int) -> dict[str, Any]:
    """A small byte-level language model: its held-out loss."""
    torch.manual_seed(seed)
    config = DecoderConfig(vocab_size=256, hidden_size=64, num_layers=2, num_heads=2, mlp_hidden_size=128)
    model = Decoder(config, lambda i: LAYERS[layer](64, 2))
    return fit(model, seed=seed, steps=steps, learning_rate=3e-3, length=256, batch_size=8)


def _run(config: RecipeConfig) -> Verdict:
    seeds, steps = range(3), 60 if config.quick else 400
    cells = [{"layer": layer, "seed": seed, "steps": steps} for layer in LAYERS for seed in seeds]
    results = run_cells(config, train, cells)
    by_layer = {layer: [r for c, r in zip(cells, results, strict=True) if c["layer"] == layer] for layer in LAYERS}
    decaying, without = ([result["loss"]["1"] for result in by_layer[layer]] for layer in LAYERS)
    rise = Interval.of([a - b for a, b in zip(without, decaying, strict=True)])
    return Verdict(
        checks=(Check(f"without the decays the loss rises: by {rise} nats a byte", rise.mean > 0),),
        figures={f"loss, {layer}": f"{Interval.of(v)} nats a byte" for layer, v in zip(LAYERS, (decaying, without))},
        charts=(Chart("Training", "step", "nats a byte", {name: mean_curve(r) for name, r in by_layer.items()}),),
    )


RECIPE = Recipe(
    name="retnet",
    paper="arXiv:2307.08621, section 3.5",
    claim="retention with fixed decays per head has a lower held-out loss than the same model without decay",
    run=_run,
)
