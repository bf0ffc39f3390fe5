"""OAT on generated shelves: how near drawn paths come to a second observer, what the flag and the codes are for, and
shelves of other shapes.

Source: arXiv:2407.13335, sections 3 and 4, with honest simulated observers in place of people.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.data.gaze import Gaze, generated
from attensor.data.shelves import Shelves, ShelvesConfig
from attensor.errors import ShapeError
from attensor.models.pointing.oat import OAT
from attensor.recipes._recipe import Chart, Check, Interval, Recipe, RecipeConfig, Verdict
from attensor.recipes._runs import Runs, measure
from attensor.train.loop import train
from attensor.train.scanpaths import ScanpathSetup, ScanpathTraining, compared, scores_of

__all__ = ["RECIPE"]

OURS, NO_FLAG, SINES, FIXED = "OAT", "without the flag", "sines for places", "fixed outputs"
RULES = "rules"
SCENES, HELD_OUT = 7700, 300
OTHER_SHELVES = {"2 x 8": (2, 8), "4 x 5": (4, 5)}
_SAMPLES, _OBSERVERS = 5, 10


def train_observers(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """Train on shelves of 3 x 6; scores there, on other products and on other shelves."""
    shelves = Shelves()
    # dropout slows so short a training
    config = dataclasses.replace(OAT.presets["oat_generated"], dropout=0.0, **_SIZES.get(variant, {}))
    held_out = _held_out(shelves, seed)
    training = ScanpathTraining(
        ScanpathSetup(config=config, steps=steps, seed=seed), generated(shelves, SCENES, seed=seed), held_out
    )
    if variant == SINES:
        training.model.places.copy_(_sines(training.model.places))
    progress = train(
        training.model, training.batch, training.loss,
        dataclasses.replace(training.setup.train_config, evaluations=5),
        evaluate=training.evaluate, optimizer=training.optimizer,
    )  # fmt: skip
    model = training.model.eval()
    found: dict[str, Any] = {"curve": [[point.step, point.score] for point in progress.curve]}
    found["drawn"] = scores_of(model, held_out, samples=_SAMPLES, seed=seed)
    if variant == OURS:
        found |= {"likely": scores_of(model, held_out, temperature=0.0), **_elsewhere(model, shelves, seed)}
    if variant == FIXED:
        found["refused"] = [name for name, grid in OTHER_SHELVES.items() if _refuses(model, shelves, grid)]
    return found


def _refuses(model: OAT, shelves: Shelves, grid: tuple[int, int]) -> bool:
    there, _ = Shelves(dataclasses.replace(shelves.config, grid=grid)).scenes(1, seed=0)
    try:
        model.generate(there)
    except ShapeError:
        return True
    return False


# without the flag, what it had is given to the look; fixed outputs are the authors' own ablation, CA_version 0
_SIZES: dict[str, dict[str, Any]] = {
    NO_FLAG: {"marks_target": False, "look_size": 48, "max_places": 6},
    FIXED: {"fixed_objects": math.prod(ShelvesConfig().grid)},
}


def _held_out(shelves: Shelves, seed: int) -> Gaze:
    return generated(shelves, HELD_OUT, seed=seed, stream=-1, observers=2)


def _elsewhere(model: OAT, shelves: Shelves, seed: int) -> dict[str, Any]:
    """Products that no training scene had, and shelves of other shapes."""
    others = Shelves(ShelvesConfig(seed=1))
    found = {"new products": scores_of(model, _held_out(others, seed), samples=_SAMPLES, seed=seed)}
    for name, grid in OTHER_SHELVES.items():
        there = Shelves(dataclasses.replace(shelves.config, grid=grid))
        found[name] = scores_of(model, _held_out(there, seed), samples=_SAMPLES, seed=seed)
    return found


def follow_rules(variant: str, seed: int) -> dict[str, Any]:
    """What a second observer and rules that nothing has learned reach on the held-out shelves of a seed."""
    shelves = Shelves()
    held_out = _held_out(shelves, seed)
    # one pair a scene would be too few to compare with
    many = generated(shelves, HELD_OUT, seed=seed, stream=-1, observers=_OBSERVERS)
    found: dict[str, Any] = {"curve": [], "people": _people(many)}
    return found | {name: compared(paths, held_out) for name, paths in _rules(held_out, shelves, seed).items()}


def _rules(gaze: Gaze, shelves: Shelves, seed: int) -> dict[str, list[Tensor]]:
    """Products drawn by a number that each has; paths are as long as people's, though not as that of the same scene."""
    random = torch.Generator().manual_seed(seed)
    scenes = gaze.scenes
    alike = torch.einsum("bnd,bd->bn", scenes.looks, scenes.looks[torch.arange(len(gaze)), scenes.target])
    near = -(scenes.cells - (scenes.grid[:, None] - 1) / 2).abs().sum(-1)
    # pixels do not know what is searched for; what they drew to once does not draw again
    rules = {
        "by likeness": (6 * alike, True),
        "near the centre": (near, True),
        "by contrast": (3 * _contrast(shelves, seed).repeat(len(gaze) // HELD_OUT, 1), False),
        "blindly": (torch.zeros_like(alike), True),
    }
    lengths = (gaze.paths >= 0).sum(1)[torch.randperm(len(gaze), generator=random)].tolist()
    found: dict[str, list[Tensor]] = {}
    for name, (scores, replacement) in rules.items():
        most = max(lengths) if replacement else min(max(lengths), scores.shape[1])
        drawn = torch.multinomial(scores.softmax(-1), most, replacement=replacement, generator=random)
        found[name] = [path[:length] for path, length in zip(drawn, lengths, strict=True)]
    return found


def _contrast(shelves: Shelves, seed: int) -> Tensor:
    """How much the pixels of each product and of those around it differ, in standard deviations, [B, R C]."""
    pixels = Shelves(dataclasses.replace(shelves.config, crops=True))
    scenes, _ = pixels.scenes(HELD_OUT, seed=seed, stream=-1)
    contrast = scenes.looks.std((2, 3)).mean(-1).view(len(scenes), *shelves.config.grid)
    around = F.avg_pool2d(contrast[:, None], 3, 1, 1, count_include_pad=False).flatten(1)
    found: Tensor = (around - around.mean(1, keepdim=True)) / around.std(1, keepdim=True)
    return found


def _people(gaze: Gaze) -> dict[str, float]:
    """The second half of the observers of each scene against the first: as much as there is to reach."""
    first, second = torch.arange(len(gaze)).view(2, -1)  # observers follow one another, each with all scenes
    return compared([path[path >= 0] for path in gaze.paths[second]], gaze.rows(first))


def _sines(places: Tensor) -> Tensor:
    """Codes of the usual sines, each as long as the others."""
    speeds = torch.exp(torch.arange(0, places.shape[1], 2) * (-9.21 / places.shape[1]))
    turned = torch.arange(len(places))[:, None] * speeds
    codes = torch.stack([turned.sin(), turned.cos()], -1).flatten(1)[:, : places.shape[1]]
    lengths: Tensor = places.norm(dim=1, keepdim=True)
    return F.normalize(codes, dim=1) * lengths


def judge(runs: Runs, rules: Runs) -> Verdict:
    """The verdict on the results of `train_observers` and `follow_rules`, by variant with one result a seed."""
    mark, own = Check.between, "drawn.score"

    def over(others: list[float]) -> Interval:
        return Interval.of([a - b for a, b in zip(runs.of(OURS, own), others, strict=True)])

    # by every seed
    refused = [name for name in OTHER_SHELVES if all(name in result["refused"] for result in runs[FIXED])]
    drops = {name: over(runs.of(OURS, f"{name}.score")) for name in OTHER_SHELVES}
    checks = (
        mark("sequence score of drawn paths over a second observer's, at least -0.05",
             over(rules.of(RULES, "people.score")), low=-0.05),
        mark("over products drawn by likeness, at least 0.12", over(rules.of(RULES, "by likeness.score")), low=0.12),
        mark("mean behaviour off by at most 0.25", runs.interval(OURS, "drawn.delta"), high=0.25),
        mark("paths that end at the target, at least 0.95", runs.interval(OURS, "drawn.found"), low=0.95),
        mark("lost without the flag, at least 0.1", runs.margin(OURS, NO_FLAG, own), low=0.1),
        mark("behaviour with sines over that with Gaussian codes, at least -0.03",
             runs.margin(SINES, OURS, "drawn.delta"), low=-0.03),
        *(mark(f"lost on shelves of {name}, trained on 3 x 6, at most 0.1", drop, high=0.1)
          for name, drop in drops.items()),
        Check(f"fixed outputs refuse shelves of other shapes: {len(refused)} of {len(OTHER_SHELVES)}",
              len(refused) == len(OTHER_SHELVES)),
    )  # fmt: skip
    return Verdict(checks, _figures(runs, rules), _charts(runs))


def _figures(runs: Runs, rules: Runs) -> dict[str, str]:
    names = {"drawn": "OAT, drawn", "likely": "OAT, the most likely", "new products": "OAT, new products"}
    names |= {name: f"OAT, shelves of {name}" for name in OTHER_SHELVES}
    ruled = {
        "people": "a second observer", "by likeness": "products by likeness",
        "near the centre": "products near the centre", "by contrast": "products by contrast of pixels",
        "blindly": "products blindly",
    }  # fmt: skip
    scored = [(runs, OURS, key, name) for key, name in names.items()]
    scored += [(rules, RULES, key, name) for key, name in ruled.items()]
    scored += [(runs, variant, "drawn", variant) for variant in (NO_FLAG, SINES, FIXED)]
    figures = {}
    for results, variant, key, name in scored:
        score, delta = (results.interval(variant, f"{key}.{what}") for what in ("score", "delta"))
        figures[f"{name}: sequence score; delta"] = f"{score}; {delta}"
    for key in ("new products", *OTHER_SHELVES):
        figures[f"two people there, {key}: sequence score"] = str(runs.interval(OURS, f"{key}.ceiling"))
    return figures


def _charts(runs: Runs) -> tuple[Chart, ...]:
    return (Chart("Drawn paths on held-out shelves", "step", "sequence score", runs.curves()),)


def _run(config: RecipeConfig) -> Verdict:
    seeds, steps = (1, 150) if config.quick else (3, 1500)
    runs = measure(config, train_observers, "variant", (OURS, NO_FLAG, SINES), seeds=seeds, steps=steps)
    # one seed: its mark is that it refuses, which no seed changes
    runs |= measure(config, train_observers, "variant", (FIXED,), seeds=1, steps=steps)
    return judge(runs, measure(config, follow_rules, "variant", (RULES,), seeds=seeds))


RECIPE = Recipe(
    name="oat-scanpath",
    paper="arXiv:2407.13335, sections 3 and 4",
    claim="paths of gaze drawn by a pointer over a scene's objects are about as near to a person's as another person's "
    "are; the mark of the target makes the end learnable, and shelves of other shapes need no training",
    run=_run,
)
