"""MaxViT: attention in windows and on a grid by turns, against either alone.

Images of 32 x 32 pixels with marks in two of the corners: whether these have the same colour takes the whole image,
which way its waves go any part of it. (With colours in the other corners too it was not learned in 500 steps.) One
stage on 8 x 8 cells, windows and grids of 4 x 4, as published, with convolutions that squeeze the whole map and a head
of two layers; and attention alone between patches and a linear layer of the mean, where nothing else connects the
corners. Variants differ in what is attended to and begin with the same weights; the order of the parts is not measured.
What a block without convolutions reaches is read from derivatives, on 16 x 16 cells; time is that of a whole block with
96 channels. Not to be shown at this size: the accuracies on ImageNet, and images that are generated.
Source: arXiv:2204.01697, sections 3 and 4.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from attensor.data.textures import MarkedCorners
from attensor.models.blocks import MLP, ResidualBlock
from attensor.models.vision import Backbone
from attensor.models.vision.backbone import ClassifierHead, Stage
from attensor.models.vision.davit import Stem
from attensor.models.vision.maxvit import MaxViT, MaxViTConfig
from attensor.nn import WindowGridAttention
from attensor.recipes import _grids
from attensor.recipes._digits import fit
from attensor.recipes._recipe import Check, Recipe, RecipeConfig, Verdict
from attensor.recipes._runs import Runs, measure

__all__ = ["RECIPE"]

FULL, WINDOWS, GRIDS = "window, grid", "windows only", "grids only"
PATTERNS: dict[str, tuple[Any, Any]] = {
    FULL: ("window", "grid"),
    WINDOWS: ("window", "window"),
    GRIDS: ("grid", "grid"),
}
PUBLISHED, ALONE = "published blocks", "attention alone"
VARIANTS = {PUBLISHED: (FULL, WINDOWS), ALONE: (FULL, WINDOWS, GRIDS)}
WIDTH, HEADS, SIDE, DEPTH = 32, 2, 4, 2
SIDES, REACH_SIDE = (56, 112), 16
BLOCK = "a block"


def train_variant(variant: str, body: str, seed: int, steps: int) -> dict[str, Any]:
    """One trained classifier of marked corners."""
    data = MarkedCorners()
    torch.manual_seed(seed)
    model = _published(variant, len(data.classes)) if body == PUBLISHED else _alone(variant, len(data.classes))
    return fit(model, seed=seed, steps=steps, data=data, **_grids.SETTINGS)


def measure_reach() -> dict[str, list[int]]:
    """How many cells move the central one of 16 x 16: of its own window, and beyond, by what the block attends to."""
    torch.manual_seed(0)
    window = torch.zeros(REACH_SIDE, REACH_SIDE, dtype=torch.bool)
    window[8:12, 8:12] = True  # of cell 8
    found = {}
    for variant in (FULL, WINDOWS):
        block = nn.Sequential(*(_block(pattern) for pattern in PATTERNS[variant])).double().eval()
        reached = _grids.reached_cells(block, WIDTH, REACH_SIDE)
        found[variant] = [int((reached & window).sum()), int((reached & ~window).sum())]
    return found


def judge(trained: dict[str, Runs], seen: _grids.Seen) -> Verdict:
    """The verdict on results of `train_variant` by body, and of what the grids share."""
    reach: dict[str, list[int]] = seen.reach
    cells, window = REACH_SIDE**2, SIDE**2
    whole, own = sum(reach[FULL]), reach[WINDOWS]
    checks = (
        *(
            Check.between(
                f"accuracy with {body}, window and grid at least 0.05 over windows only",
                runs.margin(FULL, WINDOWS, "accuracy"),
                low=0.05,
            )
            for body, runs in trained.items()
        ),
        Check(f"without convolutions, window and grid are moved by all {cells} cells: {whole}", whole == cells),
        Check(
            f"windows only by the {window} of their own window, and by none beyond: {own[0]} and {own[1]}",
            own == [window, 0],
        ),
    )
    return _grids.verdict(checks, trained, seen, block=BLOCK, of="with")


def _published(variant: str, num_classes: int) -> MaxViT:
    model = MaxViT(
        MaxViTConfig(
            image_size=(32, 32), stem_size=16, hidden_sizes=(WIDTH,), depths=(DEPTH,), block_size=SIDE,
            num_classes=num_classes, head_dim=WIDTH // HEADS, drop_path_rate=0.0,
        )
    )  # fmt: skip
    for module in model.modules():
        for name, pattern in zip(("attn_block", "attn_grid"), PATTERNS[variant]):
            if hasattr(module, name):
                module.get_submodule(f"{name}.attn").pattern = pattern
    return _grids.redrawn(model)


def _alone(variant: str, num_classes: int) -> Backbone:
    blocks = [_block(pattern) for _ in range(DEPTH) for pattern in PATTERNS[variant]]
    head = ClassifierHead(WIDTH, num_classes)
    model = Backbone(Stem(3, WIDTH), [Stage(blocks)], head, channels=[WIDTH], reductions=[4])
    return _grids.redrawn(model)


def _block(pattern: Any) -> ResidualBlock:
    attention = WindowGridAttention(WIDTH, HEADS, block_size=SIDE, pattern=pattern)
    return ResidualBlock(attention, MLP(WIDTH, 4 * WIDTH), norm=partial(nn.LayerNorm, WIDTH))


def _run(config: RecipeConfig) -> Verdict:
    seeds, steps = (2, 40) if config.quick else (3, 300)
    trained = {
        body: measure(config, train_variant, "variant", variants, seeds=seeds, steps=steps, body=body)
        for body, variants in VARIANTS.items()
    }
    return judge(trained, _grids.look(config, measure_reach, _grids.MAXVIT, SIDES))


RECIPE = Recipe(
    name="maxvit",
    paper="arXiv:2204.01697, sections 3 and 4",
    claim="a grid beside windows connects the whole image in every block: accuracy drops without it where distant "
    "places must be compared, and the cost stays linear",
    run=_run,
    needs=("sklearn", "PIL"),
    minutes=6,
)
