"""DaViT: windows of cells and groups of channels by turns, each alone, and in the other order.

One stage of four blocks on 8 x 8 cells, windows of 4 x 4; variants differ in what is attended to and begin with the
same weights. Two tasks: digits, and how many of four quadrants share a texture, which no window sees. (Which of them
share it takes places as well, and was not learned in 500 steps.)
What a block reaches is read from derivatives, on 16 x 16 cells; time is that of a spatial and a channel block with 96
channels. Not to be shown at this size: the accuracies on ImageNet.
Source: arXiv:2204.03645, sections 3 and 4.
"""

from __future__ import annotations

from typing import Any

import torch

from attensor.data.textures import SharedTextures
from attensor.models.vision.davit import DaViT, DaViTConfig
from attensor.nn import DualAttention
from attensor.recipes import _grids
from attensor.recipes._digits import fit
from attensor.recipes._recipe import Check, Recipe, RecipeConfig, Verdict
from attensor.recipes._runs import Runs, measure

__all__ = ["RECIPE"]

DUAL, SPATIAL, CHANNEL, REVERSED = "spatial, channel", "spatial only", "channel only", "channel, spatial"
# index of the layers in a dual block: even for windows, odd for channels
KINDS = {DUAL: (0, 1), SPATIAL: (0, 0), CHANNEL: (1, 1), REVERSED: (1, 0)}
DIGITS, TEXTURES = "digits", "textures"
STEPS = {DIGITS: 200, TEXTURES: 300}
WIDTH, HEADS, WINDOW = 32, 2, 4
SIDES, REACH_SIDE = (28, 56, 112), 16
BLOCK = "a dual block"


def train_variant(variant: str, task: str, seed: int, steps: int) -> dict[str, Any]:
    """One trained classifier."""
    data = SharedTextures() if task == TEXTURES else _grids.digits()
    torch.manual_seed(seed)
    model = build(variant, num_classes=len(data.classes))
    return fit(model, seed=seed, steps=steps, data=data, **_grids.SETTINGS)


def build(variant: str, *, num_classes: int) -> DaViT:
    """A DaViT of one stage whose blocks attend as the variant says."""
    model = DaViT(
        DaViTConfig(
            image_size=(32, 32), hidden_sizes=(WIDTH,), depths=(2,), num_heads=(HEADS,), window_size=WINDOW,
            in_channels=1, num_classes=num_classes, drop_path_rate=0.0,
        )
    )  # fmt: skip
    for dual in model.stages[0].get_submodule("blocks").children():
        for block, index in zip(dual.children(), KINDS[variant]):
            block.attn = DualAttention(WIDTH, HEADS, window_size=WINDOW, layer_index=index)
    return _grids.redrawn(model)


def measure_reach() -> dict[str, int]:
    """How many cells move the central one from beyond its window and the convolutions, with either kind of block."""
    torch.manual_seed(0)
    # cell 8 of 16: the second convolution sees 7 to 9, which lie in the windows 4 to 11, the first one 3 to 12
    near = torch.zeros(REACH_SIDE, REACH_SIDE, dtype=torch.bool)
    near[3:13, 3:13] = True
    found = {"beyond": int((~near).sum())}
    for variant in (SPATIAL, CHANNEL):
        stage = build(variant, num_classes=0).double().eval().stages[0]
        first = next(next(stage.get_submodule("blocks").children()).children())
        found[variant] = int((_grids.reached_cells(first, WIDTH, REACH_SIDE) & ~near).sum())
    return found


def judge(trained: dict[str, Runs], seen: _grids.Seen) -> Verdict:
    """The verdict on results of `train_variant` by task, and of what the grids share."""
    order = trained[DIGITS].margin(DUAL, REVERSED, "accuracy")
    reach: dict[str, int] = seen.reach
    beyond = reach["beyond"]
    checks = (
        *(_best(runs, task) for task, runs in trained.items()),
        Check.between(
            "accuracy on textures, at least 0.02 over spatial only",
            trained[TEXTURES].margin(DUAL, SPATIAL, "accuracy"),
            low=0.02,
        ),
        Check.between("accuracy on digits, the order of the blocks within 0.015", order, low=-0.015, high=0.015),
        Check(
            f"of {beyond} cells beyond window and convolutions, a spatial block is moved by none: {reach[SPATIAL]}",
            reach[SPATIAL] == 0,
        ),
        Check(
            f"of the same {beyond} cells, a channel block is moved by all: {reach[CHANNEL]}", reach[CHANNEL] == beyond
        ),
    )
    return _grids.verdict(checks, trained, seen, block=BLOCK, of="on")


def _best(runs: Runs, task: str) -> Check:
    best = max((SPATIAL, CHANNEL), key=lambda variant: runs.interval(variant, "accuracy").mean)
    over = runs.margin(DUAL, best, "accuracy")
    return Check.between(f"accuracy on {task}, at least the better kind alone ({best}) - 0.005", over, low=-0.005)


def _run(config: RecipeConfig) -> Verdict:
    seeds = 2 if config.quick else 3
    trained = {
        task: measure(
            config, train_variant, "variant", KINDS, seeds=seeds, steps=40 if config.quick else steps, task=task
        )
        for task, steps in STEPS.items()
    }
    return judge(trained, _grids.look(config, measure_reach, _grids.DAVIT, SIDES))


RECIPE = Recipe(
    name="davit",
    paper="arXiv:2204.03645, sections 3 and 4",
    claim="windows and channels by turns are at least as accurate as either alone, and far better than windows where "
    "the whole image decides; channels see everything in the first layer, in any order, at linear cost",
    run=_run,
    needs=("sklearn", "PIL"),
    minutes=8,
)
