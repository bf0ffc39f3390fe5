"""What the recipes of grid attention share: small backbones of five families, how far they see, and how time grows.

All backbones have a stem that comes to 4 x 4 pixels a cell, two stages of 32 and 64 channels with two attentions each,
and windows of 16 cells, of NAT and DiNAT of 9. They learn digits that fill images of 64 x 64 pixels; their receptive
fields are taken on images of 128 x 128.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.bench import paired
from attensor.data.cluttered import ClutteredDigits
from attensor.data.pictures import png, tiled
from attensor.files import atomic_path
from attensor.metrics.receptive_field import ReceptiveField, receptive_field
from attensor.models.vision import Backbone
from attensor.models.vision.davit import DaViT, DaViTConfig
from attensor.models.vision.halonet import HaloNet, HaloNetConfig
from attensor.models.vision.maxvit import MaxViT, MaxViTConfig
from attensor.models.vision.nat import NAT, NATConfig
from attensor.nn import SoftmaxAttention
from attensor.recipes._digits import fit
from attensor.recipes._recipe import Chart, Check, Picture, RecipeConfig, Tile, Verdict, run_cells
from attensor.recipes._runs import Runs, measure

__all__ = [
    "DAVIT",
    "DINAT",
    "HALONET",
    "MAXVIT",
    "PLAIN_NAT",
    "RADIUS",
    "SETTINGS",
    "Seen",
    "digits",
    "field_figures",
    "field_picture",
    "look",
    "measure_fields",
    "reached_cells",
    "redrawn",
    "time_block",
    "verdict",
    "write_fields",
]

Model = TypeVar("Model", bound=nn.Module)

PLAIN_NAT, DINAT, MAXVIT, DAVIT, HALONET = "NAT", "DiNAT", "MaxViT", "DaViT", "HaloNet"
SETTINGS: dict[str, Any] = {"learning_rate": 5e-3, "batch_size": 32}
TRAINED_SIDE, FIELD_SIDE, DIGIT_SIDE = 64, 128, 64
FIELD_IMAGES, RADIUS, DECADES = 32, 32, 4.0
TIMED_WIDTH, TIMED_HEADS = 96, 3
_SIZES: dict[str, Any] = {"hidden_sizes": (32, 64), "in_channels": 1, "num_classes": 10}
_NAT = NATConfig(depths=(2, 2), num_heads=(2, 4), window_size=3, mlp_ratio=2.0, drop_path_rate=0.0, **_SIZES)
FAMILIES: Mapping[str, Callable[[], Backbone]] = {
    PLAIN_NAT: lambda: NAT(_NAT),
    DINAT: lambda: NAT(replace(_NAT, dilations=((1, 4), (1, 2)))),
    MAXVIT: lambda: MaxViT(
        MaxViTConfig(stem_size=16, depths=(1, 1), block_size=4, head_dim=16, drop_path_rate=0.0, **_SIZES)
    ),
    DAVIT: lambda: DaViT(DaViTConfig(depths=(1, 1), num_heads=(2, 4), window_size=4, drop_path_rate=0.0, **_SIZES)),
    HALONET: lambda: HaloNet(
        HaloNetConfig(
            stem_sizes=(16,), inner_sizes=(32, 64), blocks=("aa", "aa"), num_heads=(2, 4), block_size=4, halo_size=1,
            **_SIZES,
        )
    ),
}  # fmt: skip
# from nothing to everything, dark to bright, and what has no influence at all
_RAMP = torch.tensor([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=torch.float64)
_NOTHING = torch.tensor([190, 190, 190], dtype=torch.uint8)


def measure_field(family: str, seed: int, steps: int) -> dict[str, Any]:
    """One trained backbone: its accuracy, and its receptive field before and after, the shares of 2 x 2 pixels each."""
    torch.manual_seed(seed)
    model = redrawn(FAMILIES[family]()).eval()
    before = _field_of(model)
    result = fit(
        model,
        seed=seed,
        steps=steps,
        data=ClutteredDigits(image_size=TRAINED_SIDE, digit_size=DIGIT_SIDE),
        **SETTINGS,
    )
    field = _field_of(model.eval())
    pooled = 4 * F.avg_pool2d(field.shares[None], 2)[0]
    return {
        **result,
        "beyond_before": before.beyond(RADIUS),
        "beyond": field.beyond(RADIUS),
        "shares": pooled.tolist(),
    }


def digits() -> ClutteredDigits:
    """The bundled digits of 8 x 8, four pixels of the image for one of them, as stems take them."""
    return ClutteredDigits(image_size=32, digit_size=32, noise=0.0)


def redrawn(model: Model) -> Model:
    """The model with weights and norms for few channels and steps, in place.

    The published standard deviation of 0.02 is for hundreds of channels: of 32, next to nothing would be left, so that
    linear layers and convolutions are drawn as torch draws them. A momentum of 0.01, as MaxViT's batch norms have it,
    is for hundreds of thousands of steps: after a few hundred, evaluation would still use the statistics of the start.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model


def measure_fields(config: RecipeConfig, *, seeds: int, steps: int) -> Runs:
    """`measure_field` of all families, in the order of the picture."""
    slowest_first = sorted(FAMILIES, key=lambda name: name != MAXVIT)
    found = measure(config, measure_field, "family", slowest_first, seeds=seeds, steps=steps)
    return Runs({name: found[name] for name in FAMILIES})


def field_figures(fields: Runs) -> dict[str, str]:
    """The shares beyond the radius, and accuracies."""
    place = f"share of the receptive field beyond {RADIUS} pixels"
    return {
        **fields.figures(f"{place}, {{}}", "beyond"),
        **fields.figures(f"{place}, {{}} before training", "beyond_before"),
        **fields.figures("accuracy on digits in 64 x 64 pixels, {}", "accuracy"),
    }


def field_picture(fields: Runs) -> Picture:
    """The receptive fields side by side, means over the seeds."""
    tiles = tuple(
        Tile(
            name,
            f"beyond {RADIUS} pixels: {fields.interval(name, 'beyond').mean:.2f}",
            base64.b64encode(png(_coloured(_mean_field(fields, name)))).decode(),
        )
        for name in FAMILIES
    )
    text = (
        f"How strongly each of {FIELD_SIDE} x {FIELD_SIDE} pixels moves the cell in the middle of the last map of a "
        "small trained backbone: sizes of derivatives, mean over images and seeds (arXiv:1701.04128). Brightness is "
        f"their logarithm, from the largest down to {10**DECADES:,.0f} times less; grey pixels have no influence."
    )
    return Picture("Effective receptive fields", text, tiles)


def write_fields(fields: Runs, path: Path) -> None:
    """The same in one PNG file, in the order NAT, DiNAT, MaxViT, DaViT, HaloNet."""
    sheet = torch.stack([_coloured(_mean_field(fields, name)) for name in FAMILIES])
    with atomic_path(path) as temporary:
        temporary.write_bytes(png(tiled(sheet, columns=len(FAMILIES), gap=2), scale=3))


def reached_cells(block: Callable[[Tensor], Tensor], width: int, side: int) -> Tensor:
    """Which cells of a map move the central one, bool [side, side]; `block` maps [B, rows, columns, C] to the same."""
    cells = torch.randn(2, width, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return receptive_field(lambda x: block(x.movedim(1, -1)).movedim(-1, 1), cells).shares > 0


def time_block(block: str, sides: Sequence[int], rounds: int) -> list[list[float]]:
    """[cells, seconds of a block, seconds of attention to all cells], 96 channels, one image, in turns.

    Args:
        block: `DAVIT`, a dual block with windows of 7 x 7, or `MAXVIT`, with windows and grids of 7 x 7.
        sides: of square maps.
        rounds: of which the median counts.
    """
    torch.manual_seed(0)
    ours = _timed_block(block).eval()
    everything = SoftmaxAttention(TIMED_WIDTH, TIMED_HEADS, is_causal=False, rotary_base=None)
    rows = []
    for side in sides:
        x = torch.randn(1, side, side, TIMED_WIDTH)
        with torch.inference_mode():
            calls = {"block": partial(ours, x), "all": partial(everything, x)}
            seconds = paired(calls, rounds, warmup=min(1, rounds - 1))
        rows.append([side * side, seconds["block"], seconds["all"]])
    return rows


class Seen(NamedTuple):
    """What a recipe measures of its block beside accuracies.

    Attributes:
        reach: of the recipe's own function.
        times: of `time_block`.
        fields: of `measure_fields`.
    """

    reach: Any
    times: list[list[float]]
    fields: Runs


def look(config: RecipeConfig, reach: Callable[[], Any], block: str, sides: Sequence[int]) -> Seen:
    """Measure them, and draw the receptive fields into the recipe's folder.

    Args:
        config: of the recipe.
        reach: of a module, what its block is moved by.
        block, sides: see `time_block`.
    """
    fields = measure_fields(config, seeds=1, steps=15 if config.quick else 150)
    (reached,) = run_cells(config, reach, [{}])
    asked = {"block": block, "sides": list(sides), "rounds": 3 if config.quick else 7}
    (times,) = run_cells(config, time_block, [asked], at_once=1)
    write_fields(fields, config.folder / "receptive-fields.png")
    return Seen(reached, times, fields)


def verdict(checks: Iterable[Check], trained: Mapping[str, Runs], seen: Seen, *, block: str, of: str) -> Verdict:
    """A recipe's own marks with those of time, all figures and charts.

    Args:
        checks: the recipe's own.
        trained: accuracies and their curves, by what was learned or by what learned it.
        seen: the rest.
        block: what its block is called.
        of: stands between "accuracy" and the names in `trained`, "on" or "with".
    """
    figures: dict[str, str] = {}
    charts = []
    for name, runs in trained.items():
        figures |= runs.figures(f"accuracy {of} {name}, {{}}", "accuracy")
        title = f"Held-out accuracy {of} {name} while training"
        charts.append(Chart(title, "step", "share of right answers", runs.curves()))
    return Verdict(
        (*checks, *_growth_checks(seen.times, block)),
        figures | field_figures(seen.fields),
        (*charts, _growth_chart(seen.times, block)),
        (field_picture(seen.fields),),
    )


def _growth_checks(times: Sequence[Sequence[float]], block: str) -> Iterator[Check]:
    """The marks on `time_block` with sides that double."""
    ours, everything = (
        [after[column] / before[column] for before, after in itertools.pairwise(times)] for column in (1, 2)
    )
    yield Check(
        f"4 times the cells take {block} 3 to 5.5 times as long: {_listed(ours)}",
        all(3 <= ratio <= 5.5 for ratio in ours),
    )
    yield Check(
        f"4 times the cells take attention to all of them more than 10 times as long: {_listed(everything)}",
        all(ratio > 10 for ratio in everything),
    )


def _growth_chart(times: Sequence[Sequence[float]], block: str) -> Chart:
    """Milliseconds of `time_block`."""
    series = {
        label: [(row[0], 1e3 * row[column]) for row in times]
        for label, column in ((block, 1), ("attention to all cells", 2))
    }
    return Chart(f"Forward of {block}", "cells", "milliseconds", series, log_x=True, log_y=True)


def _field_of(model: Backbone) -> ReceptiveField:
    data = ClutteredDigits(image_size=FIELD_SIDE, digit_size=DIGIT_SIDE)
    images = next(data.held_out_batches(FIELD_IMAGES))[0]
    return receptive_field(model.forward_features, images)


def _mean_field(fields: Runs, name: str) -> ReceptiveField:
    shares = torch.tensor([result["shares"] for result in fields[name]], dtype=torch.float64).mean(0)
    middle = (len(shares) - 1) / 2
    return ReceptiveField(shares, (middle, middle))


def _coloured(field: ReceptiveField) -> Tensor:
    """uint8 [3, height, width]."""
    place = field.brightness(DECADES) * (len(_RAMP) - 1)
    below = place.long().clamp(max=len(_RAMP) - 2)
    colours = torch.lerp(_RAMP[below], _RAMP[below + 1], (place - below)[..., None]).round().to(torch.uint8)
    colours[field.shares == 0] = _NOTHING
    return colours.movedim(-1, 0)


def _timed_block(block: str) -> nn.Module:
    widths: dict[str, Any] = {"num_classes": 0, "drop_path_rate": 0.0}
    if block == DAVIT:
        return DaViT(DaViTConfig(hidden_sizes=(TIMED_WIDTH,), depths=(1,), num_heads=(TIMED_HEADS,), **widths)).stages[
            0
        ]
    config = MaxViTConfig(stem_size=TIMED_WIDTH, hidden_sizes=(TIMED_WIDTH,), depths=(2,), block_size=7, **widths)
    return MaxViT(config).stages[0].get_submodule("blocks.1")  # the first block halves the map


def _listed(ratios: Sequence[float]) -> str:
    return ", ".join(f"{ratio:.1f}" for ratio in ratios)
