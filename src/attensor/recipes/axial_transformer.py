"""The Axial Transformer: context from the rows above, cost below that of attention to all, and samples that are cheap.

Models of the bundled digits (8 x 8 pixels, 17 levels) with 4 outer and 2 inner layers, and with 6 inner layers alone,
which see their own row and one pixel above it; beside them the frequencies of each pixel's levels. Time is that of the
operators of two axial layers, rows whole and columns causal, beside causal attention to all pixels; and of drawing an
image in the three ways that give the same image. Source: arXiv:1912.12180, sections 3 and 4.
"""

from __future__ import annotations

import dataclasses
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.bench import paired
from attensor.compare.fits import growth
from attensor.data.images import ImageData, open_images
from attensor.data.pictures import png, tiled
from attensor.files import atomic_path
from attensor.models.vision.axial_pictures import pixels_of
from attensor.models.vision.axial_transformer import AxialTransformer, AxialTransformerConfig
from attensor.ops import block_attention, softmax_attention
from attensor.recipes._recipe import Chart, Check, Interval, Recipe, RecipeConfig, Verdict, run_cells
from attensor.recipes._runs import Runs, measure
from attensor.train import TrainConfig, train
from attensor.train.optimizer import adamw

__all__ = ["RECIPE"]

AXIAL, ROWS = "axial", "own row only"
LAYERS = {AXIAL: (4, 2), ROWS: (0, 6)}  # outer, inner
BATCH_SIZE, LEARNING_RATE, FINAL_FACTOR = 64, 4e-3, 0.05
SIDES, HEADS, HEAD_DIM = (16, 32, 64), 4, 32
SAMPLES, COMPLETED = 16, 8
# sides of the images that are drawn, and how many at once
SIZES, QUICK_SIZES = ((16, 8), (32, 1)), ((16, 1),)
METHODS = ("slow", "semi-parallel", "cached")


def train_variant(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """One trained model: nats a pixel of held-out digits; of the axial one also samples and completed upper halves."""
    outer, inner = LAYERS[variant]
    torch.manual_seed(seed)
    model = AxialTransformer(_config(num_outer_layers=outer, num_inner_layers=inner))
    data = _data()
    held_out = _held_out(model, data)

    def batch(step: int) -> Tensor:
        return model.quantize(data.batch(step, seed=seed, batch_size=BATCH_SIZE)[0])

    def nats(model: AxialTransformer) -> float:
        return float(model.bits_per_dim(held_out).mean()) * math.log(2)

    # Adam, as published: no weight decays
    settings = TrainConfig(steps, LEARNING_RATE, warmup_fraction=0.0, final_factor=FINAL_FACTOR, evaluations=5)
    plain = partial(adamw, weight_decay=0.0, betas=(0.9, 0.999))
    progress = train(model, batch, AxialTransformer.training_loss, settings, evaluate=nats, optimizer=plain)
    curve = [[point.step, point.score] for point in progress.curve]
    found: dict[str, Any] = {"nats": curve[-1][1], "curve": curve}
    if variant == AXIAL:
        generator = torch.Generator().manual_seed(seed)
        given = held_out[:COMPLETED].clone()
        given[..., model.config.image_size[0] // 2 :, :] = -1
        found["samples"] = model.sample(SAMPLES, generator=generator).tolist()
        found["halves"] = given.tolist()
        found["completions"] = [model.sample(COMPLETED, generator=generator, given=given).tolist() for _ in range(2)]
        found["originals"] = held_out[:COMPLETED].tolist()
    return found


def fit_marginals() -> float:
    """Nats a pixel of held-out digits by the frequencies of each pixel's levels, every level counted 0.1 times more."""
    data, model = _data(), AxialTransformer(_config())
    training = model.quantize(data.training_images(data.train_images)[0]).flatten(1)  # [images, pixels]
    counts = F.one_hot(training, model.config.num_levels).sum(0).double() + 0.1
    log_shares = (counts / counts.sum(1, keepdim=True)).log()
    return -float(log_shares.gather(1, _held_out(model, data).flatten(1).T).mean())


def time_layers(rounds: int) -> list[list[float]]:
    """[cells, seconds of two axial layers, seconds of causal attention to all], operators, in turns."""
    rows = []
    for side in SIDES:
        q, k, v = torch.randn(3, 1, side, side, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(0))

        def axial(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> None:
            block_attention(q, k, v, pattern="axial", axis=1)
            block_attention(q, k, v, pattern="axial", axis=0, is_causal=True)

        whole = partial(softmax_attention, *(x.flatten(1, 2) for x in (q, k, v)), is_causal=True)
        with torch.inference_mode():
            seconds = paired({"axial": axial, "all": whole}, rounds)
        rows.append([side * side, seconds["axial"], seconds["all"]])
    return rows


def time_sampling(side: int, count: int) -> dict[str, Any]:
    """Seconds of drawing `count` images of side x side pixels by each method, and whether the images are the same."""
    torch.manual_seed(0)
    model = AxialTransformer(_config(image_size=(side, side))).double()
    with torch.no_grad():
        for parameter in model.parameters():  # what begins next to zero would leave the noise alone to decide
            parameter.add_(0.1 * torch.randn_like(parameter))
    seconds, images = {}, []
    model.sample(count)
    for method in METHODS:
        started = time.perf_counter()
        images.append(model.sample(count, method=method, generator=torch.Generator().manual_seed(1)))  # type: ignore[arg-type]
        seconds[method] = time.perf_counter() - started
    return {"seconds": seconds, "same": all(torch.equal(image, images[0]) for image in images)}


def judge(trained: Runs, marginal: float, times: list[list[float]], drawn: dict[int, dict[str, Any]]) -> Verdict:
    """The verdict on results of `train_variant`, one a seed, and of the other measurements."""
    nats, rows = trained.of(AXIAL, "nats"), trained.of(ROWS, "nats")
    over_rows = Interval.of([a / b for a, b in zip(nats, rows, strict=True)])
    over_marginal = Interval.of([a / marginal for a in nats])
    cells, ours, theirs = times[-1]
    first, last = min(drawn), max(drawn)
    semi, cached = (_faster(drawn[first], method) for method in ("semi-parallel", "cached"))
    checks = (
        Check.between("nats a pixel, axial at most 0.95 times own row only", over_rows, high=0.95),
        Check.between("nats a pixel, axial at most 0.86 times the pixels' frequencies", over_marginal, high=0.86),
        Check(
            f"two axial layers at least 3 times as fast as attention to all {cells:.0f} cells: {theirs / ours:.1f}",
            theirs >= 3 * ours,
        ),
        Check(
            f"images of {len(drawn)} sizes, drawn in float64 by three methods, the same: "
            f"{sum(one['same'] for one in drawn.values())}",
            all(one["same"] for one in drawn.values()),
        ),
        Check(f"semi-parallel at least 5 times as fast as slow at {first} x {first}: {semi:.1f}", semi >= 5),
        Check(
            f"cached at least twice as fast as semi-parallel at {first} x {first}: {cached / semi:.1f}",
            cached >= 2 * semi,
        ),
        Check(
            f"cached at least 5 times as fast as slow at {last} x {last}: {_faster(drawn[last], 'cached'):.1f}",
            _faster(drawn[last], "cached") >= 5,
        ),
    )
    figures = trained.figures("nats a pixel, {}", "nats")
    figures["nats a pixel, frequencies of each pixel"] = f"{marginal:.3f}"
    for label, column in (("two axial layers", 1), ("attention to all", 2)):
        exponent = growth([(row[0], row[column]) for row in times])
        figures[f"time of {label} grows as cells^p, p"] = f"{exponent:.2f}"
    for side, one in drawn.items():
        shown = ", ".join(f"{method} {seconds:.2f}" for method, seconds in one["seconds"].items())
        figures[f"seconds to draw {side} x {side} pixels"] = shown
    return Verdict(checks, figures, _charts(trained, times))


def write_pictures(result: dict[str, Any], path: Path) -> None:
    """A sheet of samples, and below it held-out digits, their upper halves and two completions of each."""
    rows = [result["samples"][:COMPLETED], result["samples"][COMPLETED:SAMPLES], result["originals"], result["halves"]]
    sheet = torch.tensor([image for row in (*rows, *result["completions"]) for image in row])
    with atomic_path(path) as temporary:
        temporary.write_bytes(
            png(tiled(pixels_of(sheet, _config(), unknown=96), columns=COMPLETED, ground=40), scale=6)
        )


def _faster(one: dict[str, Any], method: str) -> float:
    return float(one["seconds"]["slow"] / one["seconds"][method])


def _charts(trained: Runs, times: list[list[float]]) -> tuple[Chart, ...]:
    milliseconds = {
        label: [(row[0], 1e3 * row[column]) for row in times]
        for label, column in (("two axial layers", 1), ("attention to all", 2))
    }
    return (
        Chart("Held-out digits while training", "step", "nats a pixel", trained.curves()),
        Chart("Forward of the operators", "cells", "milliseconds", milliseconds, log_x=True, log_y=True),
    )


def _config(**changes: Any) -> AxialTransformerConfig:
    return dataclasses.replace(AxialTransformer.presets["axial_digits"], **changes)


def _data() -> ImageData:
    return open_images("digits", image_size=None, selection=0.0)


def _held_out(model: AxialTransformer, data: ImageData) -> Tensor:
    return torch.cat([model.quantize(images) for images, _ in data.test_batches(512)])


def _run(config: RecipeConfig) -> Verdict:
    seeds, steps, sizes = (2, 100, QUICK_SIZES) if config.quick else (3, 300, SIZES)
    trained = measure(config, train_variant, "variant", (AXIAL, ROWS), seeds=seeds, steps=steps)
    (marginal,) = run_cells(config, fit_marginals, [{}])
    (times,) = run_cells(config, time_layers, [{"rounds": 3 if config.quick else 7}], at_once=1)
    drawn = run_cells(config, time_sampling, [{"side": side, "count": count} for side, count in sizes], at_once=1)
    write_pictures(trained[AXIAL][0], config.folder / "samples.png")
    return judge(trained, marginal, times, {side: one for (side, _), one in zip(sizes, drawn, strict=True)})


RECIPE = Recipe(
    name="axial-transformer",
    paper="arXiv:1912.12180, sections 3 and 4",
    claim="rows above make a model of images better than its own row alone, two axial layers cost far less than "
    "attention to all pixels, and images are drawn many times faster than with a pass for each pixel",
    run=_run,
    needs=("sklearn", "PIL"),
    minutes=23,
)
