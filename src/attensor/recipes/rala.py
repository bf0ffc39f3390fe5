"""Rank-augmented linear attention: what lifts the rank of linear attention, and what it brings.

Four variants of one layer, without and with weights on the keys and a gate on the output (no rotation, no lepe, so that
nothing else adds rank), and softmax attention, trained on cluttered digits. Effective rank is the exponential of the
entropy of the normalised singular values. Source: arXiv:2411.07635, sections 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor, nn

from attensor.bench import paired
from attensor.compare.fits import growth
from attensor.nn import RankAugmentedLinearAttention, SoftmaxAttention, grid_rotary_embedding
from attensor.nn.rank_augmented import rank_augmented_features
from attensor.ops import Denominator, kernel_attention, softmax_attention
from attensor.recipes._digits import HIDDEN_SIZE, NUM_HEADS, Classifier, fit, held_out_images
from attensor.recipes._recipe import Chart, Check, Recipe, RecipeConfig, Verdict, run_cells
from attensor.recipes._runs import Runs, measure

__all__ = ["RECIPE"]

PLAIN, WEIGHTED, GATED, BOTH, SOFTMAX = "plain linear", "+ KV weighting", "+ gate", "+ both (RALA)", "softmax"
PARTS = {PLAIN: (False, False), WEIGHTED: (True, False), GATED: (False, True), BOTH: (True, True)}
VARIANTS = (*PARTS, SOFTMAX)
IMAGES = 64  # whose ranks are measured
GRIDS = ((14, 14), (28, 28), (56, 56), (56, 112), (112, 112))
MARKED, HEAD_DIM = 56 * 112, 64


def train_variant(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """One trained classifier: accuracy, and effective ranks, means over images (outputs: of each block as well)."""
    torch.manual_seed(seed)
    model = Classifier(partial(_mixer, variant))
    before = fmean(_ranks(model, _before_projection))
    result = fit(model, seed=seed, steps=steps)
    ranks = _ranks(model.eval(), _before_projection)
    result |= {"output_ranks": ranks, "output_rank": fmean(ranks), "output_rank_before": before}
    if variant != SOFTMAX:
        result["kv_rank"] = fmean(_ranks(model, _kv_buffer))
    return result


def time_forward(rounds: int) -> list[list[float]]:
    """[cells, seconds of rank-augmented, seconds of softmax attention] of one head of 64 channels, in turns."""
    rows = []
    for space in GRIDS:
        cells = math.prod(space)
        q, k, v = torch.randn(3, 1, cells, 1, HEAD_DIM, generator=torch.Generator().manual_seed(0))
        rank_augmented = partial(_rank_augmented, q, k, v, space)
        with torch.inference_mode():
            seconds = paired({"ours": rank_augmented, "softmax": partial(softmax_attention, q, k, v)}, rounds)
        rows.append([cells, seconds["ours"], seconds["softmax"]])
    return rows


def _rank_augmented(q: Tensor, k: Tensor, v: Tensor, space: tuple[int, int]) -> Tensor:
    queries, keys = rank_augmented_features(q, k)
    position_map = partial(grid_rotary_embedding, space=space)
    divide = Denominator(minimum=0.0, eps=1e-6 * q.shape[1])
    return kernel_attention(queries, keys, v, is_causal=False, position_map=position_map, denominator=divide)[0]


def effective_rank(matrices: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of [..., rows, columns]: from 1 to the full rank."""
    values = torch.linalg.svdvals(matrices.double())
    shares = values / values.sum(-1, keepdim=True)
    ranks: Tensor = torch.special.entr(shares).sum(-1).exp()
    return ranks


def judge(trained: Runs, times: list[list[float]]) -> Verdict:
    """The verdict on results of `train_variant`, one a seed, by variant, and of `time_forward`."""
    both, plain = (trained.interval(variant, "output_rank").mean for variant in (BOTH, PLAIN))
    over_plain = {v: trained.margin(v, PLAIN, "accuracy") for v in (WEIGHTED, BOTH)}
    over_softmax = {v: trained.margin(v, SOFTMAX, "accuracy") for v in (WEIGHTED, BOTH)}
    ratios = {int(cells): theirs / ours for cells, ours, theirs in times}
    slope = growth([(cells, ours) for cells, ours, _ in times[1:]])
    checks = (
        Check(
            f"effective rank of the outputs of RALA above 3 times that of plain linear attention: "
            f"{both / plain:.2f} times",
            both > 3 * plain,
        ),
        *(
            Check(f"accuracy, {v}, at least 0.15 over plain linear: {over}", over.mean >= 0.15, over, (0.15,))
            for v, over in over_plain.items()
        ),
        *(
            Check(f"accuracy, {v}, at least softmax - 0.05: {over} over it", over.mean >= -0.05, over, (-0.05,))
            for v, over in over_softmax.items()
        ),
        Check(
            f"forward at {MARKED} cells at least 4 times as fast as softmax: {ratios[MARKED]:.1f}", ratios[MARKED] >= 4
        ),
        Check(
            f"forward time grows as cells^p with p <= 1.2 from {times[1][0]:.0f} cells on: p = {slope:.2f}",
            slope <= 1.2,
        ),
    )
    return Verdict(checks, _figures(trained, ratios), _charts(trained, times))


def _figures(trained: Runs, ratios: dict[int, float]) -> dict[str, str]:
    measured = {
        "accuracy": "accuracy",
        "output_rank": f"rank of outputs (of {HIDDEN_SIZE})",
        "output_rank_before": "rank of outputs before training",
        "kv_rank": f"rank of KV (of {HIDDEN_SIZE // NUM_HEADS})",
    }
    figures: dict[str, str] = {}
    for key, label in measured.items():
        figures |= trained.figures(label + ", {}", key)
    return figures | {f"speed over softmax at {cells} cells": f"{ratio:.2g}" for cells, ratio in ratios.items()}


def _charts(trained: Runs, times: list[list[float]]) -> tuple[Chart, ...]:
    bars = {
        variant: [(block, fmean(ranks)) for block, ranks in enumerate(zip(*(r["output_ranks"] for r in runs)), 1)]
        for variant, runs in trained.items()
    }
    milliseconds = {
        "rank-augmented linear": [(cells, 1e3 * ours) for cells, ours, _ in times],
        "softmax": [(cells, 1e3 * theirs) for cells, _, theirs in times],
    }
    return (
        Chart("Effective rank of the outputs", "block of the trained model", "effective rank", bars, bars=True),
        Chart("Held-out accuracy while training", "step", "share of right answers", trained.curves()),
        Chart("Forward of one head", "cells", "milliseconds", milliseconds, log_x=True, log_y=True),
    )


def _mixer(variant: str) -> nn.Module:
    if variant == SOFTMAX:
        return SoftmaxAttention(HIDDEN_SIZE, NUM_HEADS, is_causal=False, rotary_base=None)
    weighting, gate = PARTS[variant]
    return RankAugmentedLinearAttention(
        HIDDEN_SIZE, NUM_HEADS, kv_weighting=weighting, output_gate=gate, rotary=False, lepe=False
    )


@torch.no_grad()
def _ranks(model: Classifier, matrices: Callable[[Any, Tensor], Tensor]) -> list[float]:
    """Mean effective rank of the matrices that each mixer makes of held-out images, one number a block."""
    inside = model.inside(held_out_images(IMAGES))
    return [float(effective_rank(matrices(block.attn, block.norm1(x))).mean()) for block, x in inside]


def _before_projection(layer: SoftmaxAttention | RankAugmentedLinearAttention, hidden_states: Tensor) -> Tensor:
    """What the last projection of the layer is given, [B, cells, C]."""
    seen: list[Tensor] = []
    last = layer.o_proj if isinstance(layer, SoftmaxAttention) else layer.proj
    handle = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    layer(hidden_states)
    handle.remove()
    return seen[0] if isinstance(layer, SoftmaxAttention) else seen[0].flatten(2).mT


def _kv_buffer(layer: RankAugmentedLinearAttention, hidden_states: Tensor) -> Tensor:
    """sum_j w_j K_j v_j^T for every image and head, [B, H, K, V]."""
    q, k, v = (x.flatten(1, 2) for x in layer.project(hidden_states)[:3])
    queries, keys = rank_augmented_features(q, k, is_weighted=layer.kv_weighting)
    _, state = kernel_attention(queries, keys, v, is_causal=False, output_final_state=True)
    return cast("Tensor", state)


def _run(config: RecipeConfig) -> Verdict:
    seeds, steps = (2, 150) if config.quick else (3, 500)
    trained = measure(config, train_variant, "variant", (*reversed(PARTS), SOFTMAX), seeds=seeds, steps=steps)
    (times,) = run_cells(config, time_forward, [{"rounds": 3 if config.quick else 7}], at_once=1)
    return judge(trained, times)


RECIPE = Recipe(
    name="rala",
    paper="arXiv:2411.07635, sections 3 and 4",
    claim="weights on the keys and a gate on the output lift the rank of linear attention's outputs, and its accuracy "
    "to that of softmax attention, at linear cost",
    run=_run,
    needs=("sklearn",),
)
