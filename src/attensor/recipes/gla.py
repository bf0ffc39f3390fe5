"""Gated linear attention: gates that depend on the data, one for each key channel, are what makes it learn.

Three claims of arXiv:2312.06635 at a small size: the ablation of the gate (table of section 5.2; training perplexity at
340M parameters: no gate 23.21, constant decay 16.55, data-dependent scalar 15.56, one gate a channel 14.77), recall
(multi-query associative recall, section 5.2), and models that read far beyond their training length (section 5.3).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn import GatedLinearAttention, LinearAttention, ScalarGatedLinearAttention
from attensor.recipes._language import decoder, fit
from attensor.recipes._recall import RECALL_VOCAB, fit_recall
from attensor.recipes._recipe import Chart, Check, Recipe, RecipeConfig, Verdict
from attensor.recipes._runs import Runs, measure

__all__ = ["RECIPE"]

HIDDEN_SIZE, NUM_HEADS = 64, 2
LEARNING_RATE = 3e-3
LENGTH, BATCH_SIZE, FACTORS = 96, 16, (1, 2, 4, 8)


class Ungated(LinearAttention):
    """The layer of gated linear attention without its gate."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__(hidden_size, num_heads, key_size=hidden_size // 2, output_gate="swish")


class ConstantDecay(Ungated):
    """The layer of gated linear attention with RetNet's decays, 1 - 2^(-5 - h), instead of its gate."""

    def log_decay(self, hidden_states: Tensor) -> Tensor:
        """One for each head: [H]."""
        return torch.log1p(-torch.exp2(-5 - torch.arange(self.num_heads, dtype=torch.float32)))


GATES: dict[str, Callable[[int, int], nn.Module]] = {
    "no gate": Ungated,
    "constant decay": ConstantDecay,
    "gate per head": ScalarGatedLinearAttention,
    "gate per channel (GLA)": GatedLinearAttention,
}
NONE, CONSTANT, SCALAR, GLA = GATES


class Shifted(nn.Module):
    """A mixer behind a short convolution over time, which joins a key with the value after it (arXiv:2312.04927)."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(HIDDEN_SIZE, HIDDEN_SIZE, 3, groups=HIDDEN_SIZE, bias=False)
        self.mixer = mixer

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, C] to [B, T, C]."""
        before = F.pad(hidden_states.mT, (2, 0))
        out: Tensor = self.mixer(hidden_states + self.convolution(before).mT)
        return out


def train_text(gate: str, seed: int, steps: int) -> dict[str, Any]:
    """A small byte-level language model: held-out loss at one to eight times its training length."""
    model = decoder(lambda i: GATES[gate](HIDDEN_SIZE, NUM_HEADS), seed=seed)
    data: dict[str, Any] = {"length": LENGTH, "batch_size": BATCH_SIZE, "factors": FACTORS}
    return fit(model, seed=seed, steps=steps, learning_rate=LEARNING_RATE, **data)


def train_recall(gate: str, seed: int, steps: int) -> dict[str, Any]:
    """A small model of multi-query associative recall: share of right values among eight pairs in 64 tokens."""
    model = decoder(
        lambda i: Shifted(GATES[gate](HIDDEN_SIZE, NUM_HEADS)), seed=seed, vocab_size=RECALL_VOCAB, mlp_hidden_size=128
    )
    return fit_recall(model, seed=seed, steps=steps, learning_rate=LEARNING_RATE)


def _run(config: RecipeConfig) -> Verdict:
    seeds, text_steps, recall_steps = (2, 80, 60) if config.quick else (3, 500, 900)
    return judge(
        measure(config, train_text, "gate", reversed(GATES), seeds=seeds, steps=text_steps),
        measure(config, train_recall, "gate", (GLA, CONSTANT), seeds=seeds, steps=recall_steps),
    )


def judge(text: Runs, recall: Runs) -> Verdict:
    """The verdict on results of `train_text` and `train_recall`, one a seed, by gate."""
    to_constant, to_scalar, to_none = (
        text.margin(a, b, "loss.1") for a, b in ((GLA, CONSTANT), (GLA, SCALAR), (CONSTANT, NONE))
    )
    gain = recall.margin(GLA, CONSTANT, _percent)
    farther = {f: text.interval(GLA, partial(_rise, factor=f)) for f in FACTORS[1:]}
    worst = max(farther.values(), key=lambda change: change.mean)
    checks = (
        Check(
            f"loss, GLA less constant decay at most -0.15 nats a byte: {to_constant}",
            to_constant.mean <= -0.15,
            to_constant,
            (-0.15,),
        ),
        Check(f"loss, GLA less a gate per head at most +0.02: {to_scalar}", to_scalar.mean <= 0.02, to_scalar, (0.02,)),
        Check(f"loss, constant decay less no gate below 0: {to_none}", to_none.mean < 0, to_none, (0,)),
        Check(f"recall, GLA less constant decay at least 5 points: {gain}", gain.mean >= 5, gain, (5,)),
        Check(
            f"read at up to 8 times the training length, GLA's loss rises by at most 0.02: {worst}",
            worst.mean <= 0.02,
            worst,
            (0.02,),
        ),
    )
    figures = text.figures("loss, {}, nats a byte", "loss.1")
    figures |= recall.figures("recall, {}, % of 8 pairs", _percent)
    figures |= {f"GLA's loss at {f}x less that at 1x": str(change) for f, change in farther.items()}
    lengths = {gate: [(LENGTH * f, text.interval(gate, f"loss.{f}").mean) for f in FACTORS] for gate in text}
    charts = (
        Chart("Held-out loss while training", "step", "nats a byte", text.curves()),
        Chart("Loss in longer windows", f"tokens read (trained at {LENGTH})", "nats a byte", lengths, log_x=True),
        Chart("Recall of 8 pairs while training", "step", "share of right values", recall.curves()),
    )
    return Verdict(checks, figures, charts)


def _rise(result: dict[str, Any], factor: int) -> float:
    return float(result["loss"][str(factor)] - result["loss"]["1"])


def _percent(result: dict[str, Any]) -> float:
    return float(100 * result["accuracy"])


RECIPE = Recipe(
    name="gla",
    paper="arXiv:2312.06635, sections 5.2 and 5.3",
    claim="a data-dependent gate per channel beats constant decay, which beats none, in loss and in recall, and the "
    "gated model reads text far longer than it was trained on",
    run=_run,
)
