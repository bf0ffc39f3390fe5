"""Neighbourhood attention: its time and memory, the same losses as its definition, and what dilation brings.

Operators of 4 heads of 32 are timed against a gather of each query's keys and against attention to all cells under a
mask. Digits of 8 x 8 cells are learned by two blocks with windows of 3 x 3, in one variant with a dilation of 2 in the
second. Receptive fields are those of small NAT, DiNAT, MaxViT, DaViT and HaloNet backbones. Not to be shown here: the
figures of the GPU kernels, and the accuracies on ImageNet.
Source: arXiv:2403.04690, sections 3 and 4; arXiv:2204.07143; arXiv:2209.15001.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional as F

import attensor
from attensor.bench import paired
from attensor.bench.contest import OURS
from attensor.bench.contestants.neighborhood import PEERS, NeighborhoodProblem
from attensor.bench.memory import measure_tensor_bytes
from attensor.models.vision.nat import NAT, NATConfig
from attensor.ops import neighborhood_attention, softmax_attention
from attensor.recipes import _grids
from attensor.recipes._digits import fit
from attensor.recipes._recipe import Chart, Check, Recipe, RecipeConfig, Verdict, run_cells
from attensor.recipes._runs import Runs, measure
from attensor.train.optimizer import adamw

__all__ = ["RECIPE"]

NEAR, DILATED = "near", "near, dilated"
DILATIONS = {NEAR: None, DILATED: ((1, 2),)}
GATHER, DENSE = "gather", "dense SDPA (masked)"
GRIDS = ((64, 13), (64, 7), (32, 7))  # side, window
HEADS, HEAD_DIM, WINDOW = 4, 32, 7
LENGTHS = ((32, 32), (32, 64), (64, 64), (64, 128), (128, 128))
MOST_DENSE = 64 * 64  # cells, of which twice as many take a second
PARITY_STEPS = 20
SECONDS = 60


def train_variant(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """One trained classifier: accuracy, and the seconds that its one thread computed."""
    torch.manual_seed(seed)
    model, started = _model(variant), time.process_time()
    result = fit(model, seed=seed, steps=steps, data=_grids.digits(), **_grids.SETTINGS)
    return {**result, "seconds": time.process_time() - started}


def compare_losses(seed: int) -> float:
    """Largest difference of the losses of 20 steps between the operator and its definition."""
    curves: list[list[float]] = [[], []]
    for form, losses in zip(("torch", "reference"), curves):
        torch.manual_seed(seed)
        model, data = _model(DILATED), _grids.digits()
        optimizer = adamw(model, _grids.SETTINGS["learning_rate"])
        with attensor.backend(form):
            for step in range(PARITY_STEPS):
                images, labels = data.batch(step, seed=seed, batch_size=_grids.SETTINGS["batch_size"])
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(loss.item())
    return max(abs(a - b) for a, b in zip(curves[0], curves[1], strict=True))


def time_peers(side: int, window: int, rounds: int) -> dict[str, float]:
    """Seconds of the forward pass on a square grid, in turns: ours, the gather and the mask."""
    problem = NeighborhoodProblem(side, window, HEADS, HEAD_DIM)
    built = {peer.name: peer.build(problem).call("forward") for peer in PEERS if peer.name in (OURS, GATHER, DENSE)}
    return paired(built, rounds, warmup=min(1, rounds - 1))


def time_lengths(rounds: int) -> list[list[float | None]]:
    """[cells, seconds of neighbourhood attention, seconds of attention to all (None beyond 4096 cells)], forward."""
    rows: list[list[float | None]] = []
    for space in LENGTHS:
        q, k, v = torch.randn(3, 1, *space, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(0))
        calls = {"ours": partial(neighborhood_attention, q, k, v, window_size=WINDOW)}
        cells = space[0] * space[1]
        if cells <= MOST_DENSE:
            calls["dense"] = partial(softmax_attention, *(x.flatten(1, 2) for x in (q, k, v)), is_causal=False)
        with torch.inference_mode():
            seconds = paired(calls, rounds, warmup=min(1, rounds - 1))
        rows.append([cells, seconds["ours"], seconds.get("dense")])
    return rows


def measure_memory() -> dict[str, int]:
    """Bytes of tensors at the peak of a forward pass on 64 x 64 cells, by the window."""
    q, k, v = torch.randn(3, 1, 64, 64, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    found = {}
    with torch.inference_mode():
        for window in (5, 13):
            call = partial(neighborhood_attention, q, k, v, window_size=window)
            call()
            found[str(window)] = measure_tensor_bytes(call)
    return found


def judge(
    trained: Runs,
    differences: list[float],
    peers: dict[tuple[int, int], dict[str, float]],
    lengths: list[list[float | None]],
    memory: dict[str, int],
    fields: Runs,
) -> Verdict:
    """The verdict on results of the functions above, and on the receptive fields."""
    grown, worst = memory["13"] / memory["5"], max(differences)
    checks = (
        *_speed(peers),
        *_growth(lengths),
        Check(f"memory at window 13 below 1.3 times that at window 5: {grown:.2f} times", grown < 1.3),
        Check(f"losses of {PARITY_STEPS} steps as with the definition, within 1e-4: {worst:.1g}", worst <= 1e-4),
        Check.between(
            "accuracy on digits of 8 x 8 cells, with dilation at least near alone - 0.01",
            trained.margin(DILATED, NEAR, "accuracy"),
            low=-0.01,
        ),
        *_learned(trained),
        Check.between(
            f"share of the receptive field beyond {_grids.RADIUS} pixels, of DiNAT above that of NAT",
            fields.margin(_grids.DINAT, _grids.PLAIN_NAT, "beyond"),
            above=0.0,
        ),
    )
    figures = trained.figures("accuracy, {}", "accuracy") | trained.figures("seconds of training, {}", "seconds")
    for (side, window), seconds in peers.items():
        shown = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in seconds.items())
        figures[f"milliseconds, {side} x {side}, window {window}"] = shown
    figures |= {f"MB of tensors at the peak, window {w}": f"{n / 2**20:.1f}" for w, n in memory.items()}
    return Verdict(
        checks,
        figures | _grids.field_figures(fields),
        _charts(trained, lengths),
        (_grids.field_picture(fields),),
    )


def _speed(peers: dict[tuple[int, int], dict[str, float]]) -> Iterator[Check]:
    for (side, window), seconds in peers.items():
        for peer, least in ((GATHER, 8), (DENSE, 4)) if side == 64 else ((GATHER, 3), (DENSE, 3)):
            ratio = seconds[peer] / seconds[OURS]
            yield Check(
                f"{side} x {side}, window {window}, at least {least} times as fast as {peer}: {ratio:.1f}",
                ratio >= least,
            )


def _growth(lengths: list[list[float | None]]) -> Iterator[Check]:
    ours, dense = (
        [after / before for before, after in pairwise(row[column] for row in lengths) if before and after]
        for column in (1, 2)
    )
    shown = [", ".join(f"{ratio:.2f}" for ratio in ratios) for ratios in (ours, dense)]
    yield Check(
        f"twice the cells take 1.6 to 2.5 times as long: {shown[0]}", all(1.6 <= ratio <= 2.5 for ratio in ours)
    )
    yield Check(
        f"twice the cells take attention to all more than 3 times as long: {shown[1]}",
        all(ratio > 3 for ratio in dense),
    )


def _learned(trained: Runs) -> Iterator[Check]:
    for variant in DILATIONS:
        accuracy, longest = trained.interval(variant, "accuracy"), max(trained.of(variant, "seconds"))
        yield Check(
            f"accuracy, {variant}, above 0.93 in less than {SECONDS} seconds: {accuracy}, {longest:.0f} seconds",
            accuracy.mean > 0.93 and longest < SECONDS,
            accuracy,
            (0.93,),
        )


def _charts(trained: Runs, lengths: list[list[float | None]]) -> tuple[Chart, ...]:
    milliseconds = {
        label: [(float(row[0] or 0), 1e3 * seconds) for row in lengths if (seconds := row[column]) is not None]
        for label, column in (("neighbourhood, window 7 x 7", 1), ("attention to all cells", 2))
    }
    return (
        Chart("Held-out accuracy while training", "step", "share of right answers", trained.curves()),
        Chart("Forward of the operators", "cells", "milliseconds", milliseconds, log_x=True, log_y=True),
    )


def _model(variant: str) -> NAT:
    config = NATConfig(
        image_size=(32, 32), hidden_sizes=(32,), depths=(2,), num_heads=(2,), window_size=3,
        dilations=DILATIONS[variant], mlp_ratio=2.0, in_channels=1, num_classes=10, drop_path_rate=0.0,
    )  # fmt: skip
    return _grids.redrawn(NAT(config))


def _run(config: RecipeConfig) -> Verdict:
    seeds, steps, field_steps = (2, 40, 15) if config.quick else (3, 600, 150)
    rounds = 3 if config.quick else 5
    grids = GRIDS[-1:] if config.quick else GRIDS
    fields = _grids.measure_fields(config, seeds=1, steps=field_steps)
    marked = (_grids.PLAIN_NAT, _grids.DINAT)
    fields |= measure(config, _grids.measure_field, "family", marked, seeds=seeds, steps=field_steps)
    trained = measure(config, train_variant, "variant", DILATIONS, seeds=seeds, steps=steps)
    differences = run_cells(config, compare_losses, [{"seed": seed} for seed in range(seeds)])
    asked = [{"side": side, "window": window, "rounds": rounds} for side, window in grids]
    peers = run_cells(config, time_peers, asked, at_once=1)
    (lengths,) = run_cells(config, time_lengths, [{"rounds": rounds}], at_once=1)
    (memory,) = run_cells(config, measure_memory, [{}], at_once=1)
    _grids.write_fields(fields, config.folder / "receptive-fields.png")
    return judge(trained, differences, dict(zip(grids, peers, strict=True)), lengths, memory, fields)


RECIPE = Recipe(
    name="neighborhood-attention",
    paper="arXiv:2403.04690, sections 3 and 4; arXiv:2209.15001",
    claim="neighbourhood attention in tiles is many times faster than a gather or a mask, linear in the cells, with "
    "memory that no window changes and the same losses; dilation sees farther and costs no accuracy",
    run=_run,
    needs=("sklearn", "PIL"),
    minutes=8,
)
