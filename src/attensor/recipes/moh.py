"""Mixture of heads: fewer heads as good as all, from scratch, from a trained model, and for drawing; and faster.

Byte-level models with 8 heads. Source: arXiv:2410.11842, sections 4.1 to 4.4 and its released gates.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attensor.compare.tasks.text import next_byte_loss
from attensor.models.language import Decoder
from attensor.nn import MixtureOfHeads, SoftmaxAttention, load_balance_loss
from attensor.ops import routed_attention, softmax_attention
from attensor.recipes._diffused_digits import config_of, train_diffusion, write_samples
from attensor.recipes._language import decoder, fit, held_out_loss
from attensor.recipes._recipe import Chart, Check, Interval, Recipe, RecipeConfig, Verdict, run_cells
from attensor.recipes._runs import Runs, measure

__all__ = ["RECIPE"]

HIDDEN_SIZE, HEADS, LAYERS = 64, 8, 4
LENGTH, BATCH_SIZE, LEARNING_RATE, TUNING_RATE = 96, 16, 3e-3, 5e-4
ALL, MOST, HALF, FREE = "all heads", "75 % of the heads", "50 % of the heads", "75 %, loads left alone"
SCRATCH = {MOST: (4, 6, 0.01), HALF: (2, 4, 0.01), FREE: (4, 6, 0.0)}  # shared, active, weight of the balance
HARD, SOFT, PAPER = "hard gates by queries", "random routers, published scale", "random routers, the paper's scale"
CONVERTED: dict[str, dict[str, Any]] = {
    HARD: {"router": "query-norm", "gate_scale": "hard"},
    SOFT: {"gate_scale": "code"},
    PAPER: {"gate_scale": "paper"},
}
DENSE_DIT, ROUTED_DIT = "DiT", "MoH-DiT, 75 % of the heads"
TOKENS, WIDTH = 2048, 64  # of the timed call, with 16 heads


def train_from_scratch(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """A model that routes from the start: held-out loss, and the balance of its loads over K (1 at best)."""
    shared, active, weight = SCRATCH[variant]
    model = decoder(lambda index: _routed(shared, active), seed=seed, num_layers=LAYERS)
    found = _fit(model, seed=seed, steps=steps, rate=LEARNING_RATE, weight=weight)
    held_out_loss(_Training(model), length=LENGTH)
    return {**found, "balance": float(load_balance_loss(model)) / (active - shared)}


def convert_and_tune(seed: int, steps: int, tuning: int) -> dict[str, Any]:
    """A model trained with all heads, then with 75 % of them: its losses before and after some more steps."""
    model = decoder(lambda index: SoftmaxAttention(HIDDEN_SIZE, HEADS), seed=seed, num_layers=LAYERS)
    found = _fit(model, seed=seed, steps=steps, rate=LEARNING_RATE, weight=0.0)
    before, after = {ALL: found["loss"]["1"]}, {}
    models = {ALL: copy.deepcopy(model)} | {name: _swapped(model, seed, options) for name, options in CONVERTED.items()}
    for name, one in models.items():
        before[name] = held_out_loss(one, length=LENGTH)
        if name != PAPER:
            tuned = _fit(one, seed=seed + 100, steps=tuning, rate=TUNING_RATE, weight=0.01 if name != ALL else 0.0)
            after[name] = tuned["loss"]["1"]
    return {"before": before, "after": after, "curve": found["curve"]}


def train_drawer(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """A diffusion of digits by DiT with all heads, or with six of eight."""
    config = config_of(None) if variant == DENSE_DIT else config_of(6, 4)
    return train_diffusion(config, seed=seed, steps=steps)


def time_heads(rounds: int) -> dict[str, float]:
    """Processor seconds of attention to 2048 tokens: all of 16 heads, and half of them by gates that choose evenly."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, TOKENS, 16, WIDTH, generator=generator)
    gates = torch.zeros(1, TOKENS, 16)
    gates[..., :4] = 1.0
    chosen = 4 + torch.rand(1, TOKENS, 12, generator=generator).topk(4, -1).indices
    gates.scatter_(-1, chosen, 1.0)
    calls: dict[str, Callable[[], object]] = {}
    for name, is_causal in (("", False), (", causal", True)):
        calls[f"all{name}"] = partial(softmax_attention, q, k, v, is_causal=is_causal)
        calls[f"half{name}"] = partial(routed_attention, q, k, v, gates, is_causal=is_causal)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, call in calls.items():
                began = time.process_time()
                call()
                taken[name] += [time.process_time() - began] if turn else []
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _routed(shared: int, active: int) -> nn.Module:
    return MixtureOfHeads(HIDDEN_SIZE, HEADS, num_shared=shared, num_active=active)


def _swapped(model: Decoder, seed: int, options: dict[str, Any]) -> Decoder:
    """A copy whose attention has 4 shared heads and 2 of the 4 others, with the weights that it had."""
    torch.manual_seed(seed)
    swapped = copy.deepcopy(model)
    for layer in swapped.layers:
        attention = MixtureOfHeads(HIDDEN_SIZE, HEADS, num_shared=4, num_active=6, **options)
        attention.load_state_dict(layer.attn.state_dict(), strict=False)  # type: ignore[union-attr]
        layer.attn = attention
    return swapped


def _fit(model: Decoder, *, seed: int, steps: int, rate: float, weight: float) -> dict[str, Any]:
    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        told = next_byte_loss(model, tokens)
        return told + weight * load_balance_loss(model) if weight else told

    given: dict[str, Any] = {"length": LENGTH, "batch_size": BATCH_SIZE, "loss": loss}
    return fit(model, seed=seed, steps=steps, learning_rate=rate, **given)


class _Training(nn.Module):
    """A model that stays in training mode, in which routers count."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> _Training:
        self.model.train()
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.model(tokens)
        return out


def judge(scratch: Runs, tuned: Runs, drawn: Runs, times: dict[str, float]) -> Verdict:
    """The verdict on results of the four measurements above, the first three by variant with one result a seed."""
    mark = Check.between
    base = tuned[ALL]

    def over(key: str, name: str) -> list[float]:
        return [result[key][name] - result[key][ALL] for result in base]

    from_scratch = {v: [r["loss"]["1"] - b["before"][ALL] for r, b in zip(scratch[v], base)] for v in (MOST, HALF)}
    ratios = [a["loss"] / b["loss"] for a, b in zip(drawn[ROUTED_DIT], drawn[DENSE_DIT], strict=True)]
    speed = {kind: times[f"half{kind}"] / times[f"all{kind}"] for kind in ("", ", causal")}
    checks = (
        *(
            mark(f"{v} from scratch, nats a byte over all heads, at most 0.05", Interval.of(values), high=0.05)
            for v, values in from_scratch.items()
        ),
        mark(f"converted, {HARD}, untuned, over all heads at most 0.05", Interval.of(over("before", HARD)), high=0.05),
        mark(f"converted, {PAPER}, untuned, at least 0.3", Interval.of(over("before", PAPER)), low=0.3),
        mark(f"tuned, {HARD}, over all heads tuned, at most 0.02", Interval.of(over("after", HARD)), high=0.02),
        mark("loads with their loss at most 1.1 times an even one", scratch.interval(MOST, "balance"), high=1.1),
        mark("loads without it are less even by", scratch.margin(FREE, MOST, "balance"), above=0.0),
        mark("noise told wrongly by MoH-DiT, over DiT's, at most 1.02 times", Interval.of(ratios), high=1.02),
        Check(
            f"half of 16 heads at {TOKENS} tokens, at most 0.8 of the time of all: {speed['']:.2f}", speed[""] <= 0.8
        ),
    )
    figures = _figures(scratch, tuned, drawn)
    figures["half of 16 heads, causal, of the time of all"] = f"{speed[', causal']:.2f}"
    return Verdict(checks, figures, _charts(scratch, tuned, drawn))


def _figures(scratch: Runs, tuned: Runs, drawn: Runs) -> dict[str, str]:
    figures = {f"loss, {ALL}, nats a byte": str(Interval.of([r["before"][ALL] for r in tuned[ALL]]))}
    figures |= scratch.figures("loss, {}, nats a byte", "loss.1") | scratch.figures("loads over even, {}", "balance")
    for key, when in (("before", "untuned"), ("after", "tuned")):
        for name in tuned[ALL][0][key]:
            figures[f"converted, {name}, {when}"] = str(Interval.of([r[key][name] for r in tuned[ALL]]))
    figures |= drawn.figures("noise told wrongly, {}", "loss")
    return figures | drawn.figures("digits that a classifier names as asked for, {}", "right")


def _charts(scratch: Runs, tuned: Runs, drawn: Runs) -> tuple[Chart, ...]:
    return (
        Chart("Held-out loss from scratch", "step", "nats a byte", {**tuned.curves(), **scratch.curves()}),
        Chart("Held-out noise told wrongly", "step", "mean square", drawn.curves()),
    )


def _run(config: RecipeConfig) -> Verdict:
    seeds, steps, tuning, drawing = (1, 60, 15, 150) if config.quick else (3, 350, 60, 700)
    tuned = run_cells(config, convert_and_tune, [{"seed": s, "steps": steps, "tuning": tuning} for s in range(seeds)])
    scratch = measure(config, train_from_scratch, "variant", SCRATCH, seeds=seeds, steps=steps)
    drawn = measure(config, train_drawer, "variant", (ROUTED_DIT, DENSE_DIT), seeds=seeds, steps=drawing)
    (times,) = run_cells(config, time_heads, [{"rounds": 3 if config.quick else 9}], at_once=1)
    config.folder.mkdir(parents=True, exist_ok=True)
    write_samples({name: runs[0]["samples"] for name, runs in drawn.items()}, config.folder / "samples.png")
    return judge(scratch, Runs({ALL: tuned}), drawn, times)


RECIPE = Recipe(
    name="moh",
    paper="arXiv:2410.11842, sections 4.1 to 4.4",
    claim="with half to three quarters of its heads a model is as good as with all, from scratch, as a diffusion, and "
    "converted from a trained one; an auxiliary loss spreads the load; what is not active costs nothing",
    run=_run,
    needs=("sklearn", "PIL"),
    minutes=9,
)
