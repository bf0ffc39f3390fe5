"""L2ViT: linear attention spreads over the map, local concentration gathers; and what the raised denominator does.

Classifiers of cluttered digits with ReLU linear attention, without and with the local concentration module (LCM), and
with softmax attention. From q and k of one trained model both kinds of weights are made, linear and softmax, and their
entropies compared: of the model with linear attention, and of that with softmax attention. The Jacobian is that of what
mixer (and LCM) add to the stream, d out_i / d x_j, its Frobenius norm over channels for every pair of cells; on 8 x 8
cells as in training, of which 7 x 7 are about half, and on 16 x 16.
Source: arXiv:2501.16182, sections 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.bench import paired
from attensor.data.cluttered import ClutteredDigits
from attensor.nn import GlobalLinearAttention, SoftmaxAttention
from attensor.recipes._digits import HIDDEN_SIZE, NUM_HEADS, Classifier, fit, held_out_images
from attensor.recipes._recipe import Chart, Check, Recipe, RecipeConfig, Verdict, run_cells
from attensor.recipes._runs import Runs, measure

__all__ = ["RECIPE"]

LINEAR, WITH_LCM, SOFTMAX = "ReLU linear", "ReLU linear + LCM", "softmax"
VARIANTS = (WITH_LCM, LINEAR, SOFTMAX)
MINIMUM = 1.0  # of the denominator on maps of 64 cells; 100 on maps of thousands
IMAGES, JACOBIAN_IMAGES, JACOBIAN_CELLS, REACH = 64, 2, 64, 3
IMAGE_SIZES = {8: 32, 16: 64}  # pixels for so many rows of cells
SIDES = (16, 32, 64, 128)
CLAMPS = {"clamp 100": 100.0, "clamp 1e-6": 1e-6}
# narrow heads: a row of weights sums up to little where all ReLU features of its query are nearly zero
TOY_LAYERS, TOY_HEADS, TOY_SCALE, TOY_BATCH, TOY_RATE = 3, 8, 30.0, 32, 1e-3


def train_variant(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """One trained classifier: accuracy, and how concentrated its attention is."""
    torch.manual_seed(seed)
    model = Classifier(partial(_mixer, variant), local_concentration=variant == WITH_LCM)
    result = fit(model, seed=seed, steps=steps)
    model.eval()
    if variant != WITH_LCM:
        result |= _entropies(model, held_out_images(IMAGES))
    if variant == SOFTMAX:
        return result
    for rows, image_size in IMAGE_SIZES.items():
        images = held_out_images(JACOBIAN_IMAGES, image_size=image_size)
        inside = [(block, x.detach()) for block, x in model.inside(images)]
        result[f"mass_{rows}"] = fmean(near_mass(block.mix, x) for block, x in inside)
        if variant == WITH_LCM:
            without = [(partial(block.mix, with_local=False), x) for block, x in inside]
            result[f"mass_{rows}_before_lcm"] = fmean(near_mass(mix, x) for mix, x in without)
    return result


def near_mass(function: Callable[[Tensor], Tensor], hidden_states: Tensor) -> float:
    """Share of |d out_i / d x_j| with j at most 3 rows and columns from i; mean over images and at most 64 cells i.

    Args:
        function: [B, height, width, C] to the same, image by image.
        hidden_states: [B, height, width, C].
    """
    _, height, width, channels = hidden_states.shape
    place = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).flatten(0, 1)
    asked = torch.randperm(height * width, generator=torch.Generator().manual_seed(0))[:JACOBIAN_CELLS]
    is_near = (place[asked, None] - place).abs().amax(-1) <= REACH  # [asked, cells]
    shares = []
    for image in hidden_states:
        # each image of the batch serves the derivatives of one cell
        copies = image.expand(len(asked), -1, -1, -1).clone().requires_grad_()
        own = function(copies).flatten(1, 2)[torch.arange(len(asked)), asked]  # [asked, C]
        squares = torch.zeros(len(asked), height * width)
        for channel in range(channels):
            (gradient,) = torch.autograd.grad(own[:, channel].sum(), copies, retain_graph=channel < channels - 1)
            squares += gradient.flatten(1, 2).square().sum(-1)
        norms = squares.sqrt()
        shares.append(((norms * is_near).sum(1) / norms.sum(1)).mean())
    return float(torch.stack(shares).mean())


def time_forward(rounds: int) -> list[list[float]]:
    """[cells, seconds of the mixer with LCM, seconds of softmax attention], layers of one head, in evaluation."""
    ours = GlobalLinearAttention(HIDDEN_SIZE, 1, local_concentration=True).eval()
    softmax = SoftmaxAttention(HIDDEN_SIZE, 1, is_causal=False, rotary_base=None)
    rows = []
    for side in SIDES:
        x = torch.randn(1, side, side, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            seconds = paired({"ours": partial(ours, x), "softmax": partial(softmax, x)}, rounds)
        rows.append([side * side, seconds["ours"], seconds["softmax"]])
    return rows


def train_toy(clamp: str, seed: int, steps: int) -> dict[str, Any]:
    """Three layers without norms on inputs scaled by 30: the norm of the gradient at every step (None: not finite)."""
    torch.manual_seed(seed)
    data = ClutteredDigits()
    embed = nn.Conv2d(1, HIDDEN_SIZE, 4, stride=4)
    layers = nn.ModuleList(
        GlobalLinearAttention(HIDDEN_SIZE, TOY_HEADS, denominator_minimum=CLAMPS[clamp]) for _ in range(TOY_LAYERS)
    )
    head = nn.Linear(HIDDEN_SIZE, 10)
    parameters = list(nn.ModuleList([embed, layers, head]).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=TOY_RATE)
    norms: list[float | None] = []
    for step in range(steps):
        images, labels = data.batch(step, seed=seed, batch_size=TOY_BATCH)
        hidden_states = embed(TOY_SCALE * images).movedim(1, -1)
        for layer in layers:
            hidden_states = hidden_states + layer(hidden_states)
        loss = F.cross_entropy(head(hidden_states.mean((1, 2))), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        norms.append(norm if math.isfinite(norm) else None)
        optimizer.step()
    return {"norms": norms}


def judge(trained: Runs, times: list[list[float]], toys: Runs) -> Verdict:
    """The verdict on results of `train_variant` and `train_toy`, one a seed, and of `time_forward`."""
    over_linear, over_softmax = (trained.margin(WITH_LCM, v, "accuracy") for v in (LINEAR, SOFTMAX))
    growth, softmax_growth = (times[-1][column] / times[0][column] for column in (1, 2))
    high, low = (toys.of(clamp, _largest) for clamp in CLAMPS)
    checks = (
        *_concentration(trained),
        Check(
            f"accuracy with LCM at least 0.05 over linear: {over_linear}",
            over_linear.mean >= 0.05,
            over_linear,
            (0.05,),
        ),
        Check(
            f"accuracy with LCM at least 0.05 over softmax: {over_softmax}",
            over_softmax.mean >= 0.05,
            over_softmax,
            (0.05,),
        ),
        Check(
            f"64 times the cells take at most 90 times as long: {growth:.0f} (softmax {softmax_growth:.0f})",
            growth <= 90,
        ),
        Check(
            f"largest gradient norm in a toy, each seed lower with clamp 100 than with 1e-6: {_texts(high)} to "
            f"{_texts(low)}",
            all(a < b for a, b in zip(high, low, strict=True)),
        ),
    )
    figures = trained.figures("accuracy, {}", "accuracy")
    figures |= _concentration_figures(trained)
    figures["seconds of softmax over those of linear + LCM at 128 x 128"] = f"{times[-1][2] / times[-1][1]:.1f}"
    return Verdict(checks, figures, _charts(trained, times, toys))


def _concentration(trained: Runs) -> Iterator[Check]:
    for variant in (LINEAR, SOFTMAX):
        more = trained.interval(variant, lambda run: run["entropy_linear"] - run["entropy_softmax"])
        yield Check(
            f"entropy, linear above softmax weights of q and k trained with {variant}, by 0.5 nat: {more}",
            more.mean > 0.5,
            more,
            (0.5,),
        )
    for rows in IMAGE_SIZES:
        without, with_lcm = (trained.interval(v, f"mass_{rows}").mean for v in (LINEAR, WITH_LCM))
        yield Check(
            f"Jacobian within 7 x 7 of {rows} x {rows} cells, with LCM at least 1.5 times without: "
            f"{with_lcm:.3f} to {without:.3f}, {with_lcm / without:.2f} times",
            with_lcm >= 1.5 * without,
        )


def _concentration_figures(trained: Runs) -> dict[str, str]:
    figures: dict[str, str] = {}
    for weights in ("linear", "softmax"):
        figures |= trained.figures(f"entropy of {weights} weights, q and k of {{}}, nats", f"entropy_{weights}")
    for rows in IMAGE_SIZES:
        place = f"Jacobian within 7 x 7 of {rows} x {rows} cells"
        figures |= trained.figures(f"{place}, {{}}", f"mass_{rows}")
        figures |= trained.figures(f"{place}, the model with LCM before its LCM", f"mass_{rows}_before_lcm")
    return figures


def _charts(trained: Runs, times: list[list[float]], toys: Runs) -> tuple[Chart, ...]:
    milliseconds = {
        "ReLU linear + LCM": [(cells, 1e3 * ours) for cells, ours, _ in times],
        "softmax": [(cells, 1e3 * theirs) for cells, _, theirs in times],
    }
    norms = {
        clamp: [(step, norm) for step, norm in enumerate(runs[0]["norms"], 1) if norm is not None]
        for clamp, runs in toys.items()
    }
    return (
        Chart("Held-out accuracy while training", "step", "share of right answers", trained.curves()),
        Chart("Forward of one layer", "cells", "milliseconds", milliseconds, log_x=True, log_y=True),
        Chart("Gradient in the toy, first seed", "step", "norm", norms, log_y=True),
    )


def _mixer(variant: str) -> nn.Module:
    if variant == SOFTMAX:
        return SoftmaxAttention(HIDDEN_SIZE, NUM_HEADS, is_causal=False, rotary_base=None)
    return GlobalLinearAttention(HIDDEN_SIZE, NUM_HEADS, denominator_minimum=MINIMUM)


@torch.no_grad()
def _entropies(model: Classifier, images: Tensor) -> dict[str, float]:
    """Mean entropy of the rows of weights, linear and softmax of the same q and k; zero rows are left out."""
    linear, softmax = [], []
    for block, x in model.inside(images):
        q, k = _queries_and_keys(
            cast("SoftmaxAttention | GlobalLinearAttention", block.attn), block.norm1(x).flatten(1, 2)
        )
        weights = q.relu() @ k.relu().mT
        sums = weights.sum(-1)
        linear.append(_entropy(weights[sums > 0] / sums[sums > 0][:, None]))
        softmax.append(_entropy((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)))
    return {"entropy_linear": fmean(linear), "entropy_softmax": fmean(softmax)}


def _queries_and_keys(layer: SoftmaxAttention | GlobalLinearAttention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Two times [B, H, cells, D]."""
    if isinstance(layer, SoftmaxAttention):
        projected = (layer.q_proj(tokens), layer.k_proj(tokens))
    else:
        projected = layer.qkv(tokens).chunk(3, dim=-1)[:2]
    q, k = (x.unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2) for x in projected)
    return q, k


def _entropy(weights: Tensor) -> float:
    return float(torch.special.entr(weights).sum(-1).mean())


def _largest(run: dict[str, Any]) -> float:
    return max(math.inf if norm is None else norm for norm in run["norms"])


def _texts(values: list[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _run(config: RecipeConfig) -> Verdict:
    seeds, steps, toy_steps = (2, 100, 50) if config.quick else (3, 500, 200)
    trained = measure(config, train_variant, "variant", VARIANTS, seeds=seeds, steps=steps)
    toys = measure(config, train_toy, "clamp", CLAMPS, seeds=3, steps=toy_steps)
    (times,) = run_cells(config, time_forward, [{"rounds": 3 if config.quick else 7}], at_once=1)
    return judge(trained, times, toys)


RECIPE = Recipe(
    name="l2vit",
    paper="arXiv:2501.16182, sections 3 and 4",
    claim="linear attention spreads its weights, local concentration gathers them and lifts accuracy over softmax "
    "attention's, at linear cost; raising the denominator to 100 keeps gradients small",
    run=_run,
    needs=("sklearn",),
)
