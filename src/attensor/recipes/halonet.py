"""HaloNet: local attention in blocks with halos, its speed and memory, strided queries, and what the halo brings.

Digits on a map of 8 x 8 cells, blocks of 4 x 4: two bottlenecks with a convolution of 3 x 3, as wide as
makes the numbers of parameters equal, or with attention and halos of 0, 1 and 2 cells; and a bottleneck that halves the
map by strided queries, or by the means of all. Times and memory are those of one layer on 64 x 64 cells of 64 channels,
blocks of 8 and halos of 3, beside blocks of one cell, which are per-pixel local attention. Not to be shown at this
size: the accuracies on ImageNet.
Source: arXiv:2103.12731, sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.bench import paired
from attensor.bench.memory import measure_tensor_bytes
from attensor.models.vision.halonet import HaloNet, HaloNetConfig
from attensor.nn.halo import HaloAttention
from attensor.nn.mixer import Heads
from attensor.recipes import _grids
from attensor.recipes._digits import fit
from attensor.recipes._recipe import Chart, Check, Recipe, RecipeConfig, Verdict, run_cells
from attensor.recipes._runs import Runs, measure

__all__ = ["RECIPE"]

HALOS = {"halo 0": 0, "halo 1": 1, "halo 2": 2}
CONVOLUTION, STRIDED, POOLED = "convolution", "strided queries", "all queries, then means"
VARIANTS = (*HALOS, CONVOLUTION, STRIDED, POOLED)
WIDTH, INNER, HEADS, BLOCK = 64, 32, 2, 4
# of the layer that is timed
SIDE, CHANNELS, TIMED_HEADS, TIMED_BLOCK, TIMED_HALO = 64, 64, 4, 8, 3
WHOLE, PER_CELL = "blocks of 8", "blocks of 1"


class PooledHaloAttention(HaloAttention):
    """Halo attention without a projection, of which the means of 2 x 2 cells are kept."""

    def merge(self, out: Tensor, heads: Heads) -> Tensor:
        """[B, rows, columns, H, V] to [B, rows / 2, columns / 2, H V]."""
        return F.avg_pool2d(super().merge(out, heads).movedim(-1, 1), 2).movedim(1, -1)


def train_variant(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """One trained classifier: its accuracy, and its number of parameters."""
    torch.manual_seed(seed)
    model = build(variant)
    result = fit(model, seed=seed, steps=steps, data=_grids.digits(), **_grids.SETTINGS)
    return {**result, "parameters": _count(model)}


def build(variant: str) -> HaloNet:
    """A HaloNet of one stage with two blocks, or of two with one block each where the second halves the map."""
    if variant in HALOS:
        return _grids.redrawn(HaloNet(_config(halo_size=HALOS[variant])))
    if variant == CONVOLUTION:
        asked = _count(HaloNet(_config(halo_size=1)))
        widths = range(1, INNER + 1)
        inner = min(widths, key=lambda inner: abs(_count(HaloNet(_config(inner, blocks=("cc",)))) - asked))
        return _grids.redrawn(HaloNet(_config(inner, blocks=("cc",))))
    model = _grids.redrawn(HaloNet(_config(halo_size=1, blocks=("a", "a"))))
    if variant == POOLED:
        block = model.stages[1].get_submodule("0")
        pooled = PooledHaloAttention(INNER, HEADS, block_size=BLOCK, halo_size=1, output_projection=False)
        pooled.load_state_dict(block.get_submodule("self_attn").state_dict())
        block.self_attn = pooled
    return model


def measure_layer(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of the layers' forward passes in turns, and the bytes of tensors at the peak of each."""
    torch.manual_seed(0)
    asked: dict[str, Any] = {"halo_size": TIMED_HALO, "output_projection": False}
    layers: dict[str, nn.Module] = {
        WHOLE: HaloAttention(CHANNELS, TIMED_HEADS, block_size=TIMED_BLOCK, **asked),
        PER_CELL: HaloAttention(CHANNELS, TIMED_HEADS, block_size=1, **asked),
        STRIDED: HaloAttention(CHANNELS, TIMED_HEADS, block_size=TIMED_BLOCK, query_stride=2, **asked),
        POOLED: PooledHaloAttention(CHANNELS, TIMED_HEADS, block_size=TIMED_BLOCK, **asked),
    }
    x = torch.randn(1, SIDE, SIDE, CHANNELS)
    calls = {name: partial(layer, x) for name, layer in layers.items()}
    with torch.inference_mode():
        seconds = paired(calls, rounds, warmup=min(1, rounds - 1))
        peaks = {name: float(measure_tensor_bytes(calls[name])) for name in (WHOLE, PER_CELL)}
    return {"seconds": seconds, "peak": peaks}


def measure_shift() -> dict[str, float]:
    """Largest difference between the layer of a shifted map and the shifted layer, over the largest output, inside."""
    torch.manual_seed(0)
    layer = HaloAttention(8, 2, block_size=BLOCK, halo_size=1).double()
    x = torch.randn(1, 6 * BLOCK, 6 * BLOCK, 8, dtype=torch.float64)
    inside = slice(2 * BLOCK, -2 * BLOCK)
    found = {}
    with torch.inference_mode():
        for shift in (BLOCK, 1):
            moved = layer(x.roll((shift, shift), (1, 2)))
            expected = layer(x).roll((shift, shift), (1, 2))
            difference = (moved - expected)[:, inside, inside].abs().max() / expected.abs().max()
            found[str(shift)] = float(difference)
    return found


def judge(trained: Runs, layer: dict[str, dict[str, float]], shift: dict[str, float], fields: Runs) -> Verdict:
    """The verdict on results of `train_variant`, one a seed, and of the other measurements."""
    seconds, peak = layer["seconds"], layer["peak"]
    faster = seconds[PER_CELL] / seconds[WHOLE]
    copies = {name: (1 + 2 * TIMED_HALO / block) ** 2 for name, block in ((WHOLE, TIMED_BLOCK), (PER_CELL, 1))}
    fewer, lower = copies[PER_CELL] / copies[WHOLE], peak[PER_CELL] / peak[WHOLE]
    share = seconds[STRIDED] / seconds[POOLED]
    whole, single = shift[str(BLOCK)], shift["1"]
    checks = (
        Check(f"blocks of 8 at least twice as fast as per-pixel attention: {faster:.1f} times", faster >= 2),
        Check(f"windows of keys and values in blocks of 8 at least 8 times smaller: {fewer:.1f} times", fewer >= 8),
        Check(f"tensors of the whole layer at its peak at least 8 times smaller: {lower:.1f} times", lower >= 8),
        Check(f"strided queries in at most 0.45 of the time of all and their means: {share:.2f}", share <= 0.45),
        Check.between(
            "accuracy of strided queries, at least all and their means - 0.01",
            trained.margin(STRIDED, POOLED, "accuracy"),
            low=-0.01,
        ),
        Check.between(
            "accuracy of halo 1, at least convolution with as many parameters - 0.01",
            trained.margin("halo 1", CONVOLUTION, "accuracy"),
            low=-0.01,
        ),
        *_halos(trained),
        Check(
            f"a shift by a block shifts the interior exactly, by one cell not: differences of {whole:.1g} and "
            f"{single:.1g} of the largest output",
            whole <= 1e-12 and single > 1e-3,
        ),
    )
    figures = trained.figures("accuracy, {}", "accuracy")
    figures |= {f"parameters, {variant}": f"{runs[0]['parameters']:,}" for variant, runs in trained.items()}
    figures |= {f"milliseconds of the layer, {name}": f"{1e3 * value:.1f}" for name, value in seconds.items()}
    figures |= {f"MB of tensors at the peak, {name}": f"{value / 2**20:.1f}" for name, value in peak.items()}
    return Verdict(
        checks,
        figures | _grids.field_figures(fields),
        (Chart("Held-out accuracy while training", "step", "share of right answers", trained.curves()),),
        (_grids.field_picture(fields),),
    )


def _halos(trained: Runs) -> Iterator[Check]:
    for smaller, larger in pairwise(HALOS):
        over = trained.margin(larger, smaller, "accuracy")
        yield Check.between(f"accuracy of {larger}, at least {smaller} - 0.005", over, low=-0.005)


def _config(inner: int = INNER, *, halo_size: int = 1, blocks: tuple[str, ...] = ("aa",)) -> HaloNetConfig:
    stages = len(blocks)
    return HaloNetConfig(
        image_size=(32, 32), stem_sizes=(32,), inner_sizes=(inner,) * stages, hidden_sizes=(WIDTH,) * stages,
        blocks=blocks, num_heads=(HEADS,) * stages, block_size=BLOCK, halo_size=halo_size, in_channels=1,
        num_classes=10,
    )  # fmt: skip


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _run(config: RecipeConfig) -> Verdict:
    seeds, steps, field_steps = (2, 40, 15) if config.quick else (3, 300, 150)
    trained = measure(config, train_variant, "variant", VARIANTS, seeds=seeds, steps=steps)
    fields = _grids.measure_fields(config, seeds=1, steps=field_steps)
    (shift,) = run_cells(config, measure_shift, [{}])
    (layer,) = run_cells(config, measure_layer, [{"rounds": 3 if config.quick else 7}], at_once=1)
    _grids.write_fields(fields, config.folder / "receptive-fields.png")
    return judge(trained, layer, shift, fields)


RECIPE = Recipe(
    name="halonet",
    paper="arXiv:2103.12731, sections 2 and 3",
    claim="blocks with halos are much faster and smaller than per-pixel local attention, strided queries cost no "
    "accuracy, attention matches convolutions of its size, and larger halos do not hurt",
    run=_run,
    needs=("sklearn", "PIL"),
    minutes=20,
)
