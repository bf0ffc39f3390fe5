"""OAT on generated shelves: how near drawn paths come to a second observer, what the flag and the codes are for, and
shelves of other shapes.

Source: arXiv:2407.13335, sections 3 and 4, with honest simulated observers in place of people.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.data.gaze import Gaze, generated
from attensor.data.shelves import Shelves, ShelvesConfig
from attensor.models.pointing.oat import OAT
from attensor.recipes._recipe import Chart, Check, Interval, Recipe, RecipeConfig, Verdict
from attensor.recipes._runs import Runs, measure
from attensor.train.loop import train
from attensor.train.scanpaths import ScanpathSetup, ScanpathTraining, compared, scores_of

__all__ = ["RECIPE"]

OURS, NO_FLAG, SINES = "OAT", "without the flag", "sines for places"
SCENES, HELD_OUT = 7700, 300
OTHER_SHELVES = {"2 x 8": (2, 8), "4 x 5": (4, 5)}
_SAMPLES = 10


def train_observers(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """Train on shelves of 3 x 6; scores there, on other products and on other shelves, and what simple rules reach."""
    shelves = Shelves()
    # what the flag had is given to the look
    sizes: dict[str, Any] = {"marks_target": False, "look_size": 48, "max_places": 6} if variant == NO_FLAG else {}
    config = dataclasses.replace(OAT.presets["oat_generated"], **sizes)
    held_out = _held_out(shelves, seed)
    training = ScanpathTraining(
        ScanpathSetup(config=config, steps=steps, seed=seed), generated(shelves, SCENES, seed=seed), held_out
    )
    if variant == SINES:
        training.model.places.copy_(_sines(training.model.places))
    progress = train(
        training.model, training.batch, training.loss, training.setup.train_config, evaluate=training.evaluate,
        optimizer=training.optimizer,
    )  # fmt: skip
    model = training.model.eval()
    found: dict[str, Any] = {"curve": [[point.step, point.score] for point in progress.curve]}
    found["drawn"] = scores_of(model, held_out, samples=_SAMPLES, seed=seed)
    if variant == OURS:
        found |= {"likely": scores_of(model, held_out, temperature=0.0), **_elsewhere(model, shelves, seed)}
        found |= {name: compared(paths, held_out) for name, paths in _rules(held_out, seed).items()}
        found["people"] = _people(held_out)
    return found


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


def _rules(gaze: Gaze, seed: int) -> dict[str, list[Tensor]]:
    """Paths of a person's length: products drawn by their likeness to the target, and drawn blindly."""
    random = torch.Generator().manual_seed(seed)
    looks = gaze.scenes.looks
    alike = 6 * torch.einsum("bnd,bd->bn", looks, looks[torch.arange(len(gaze)), gaze.scenes.target])
    lengths = (gaze.paths >= 0).sum(1).tolist()
    found: dict[str, list[Tensor]] = {}
    for name, scores in {"by likeness": alike, "blindly": torch.zeros_like(alike)}.items():
        drawn = torch.multinomial(scores.softmax(-1), max(lengths), replacement=True, generator=random)
        found[name] = [path[:length] for path, length in zip(drawn, lengths, strict=True)]
    return found


def _people(gaze: Gaze) -> dict[str, float]:
    """The second observer of each scene against the first: as much as there is to reach."""
    first, second = gaze.groups.argsort(stable=True).view(-1, 2).T
    return compared([path[path >= 0] for path in gaze.paths[second]], gaze.rows(first))


def _sines(places: Tensor) -> Tensor:
    """Codes of the usual sines, each as long as the others."""
    speeds = torch.exp(torch.arange(0, places.shape[1], 2) * (-9.21 / places.shape[1]))
    turned = torch.arange(len(places))[:, None] * speeds
    codes = torch.stack([turned.sin(), turned.cos()], -1).flatten(1)[:, : places.shape[1]]
    lengths: Tensor = places.norm(dim=1, keepdim=True)
    return F.normalize(codes, dim=1) * lengths


def judge(runs: Runs) -> Verdict:
    """The verdict on the results of `train_observers`, by variant with one result a seed."""
    mark, own = Check.between, "drawn.score"

    def apart(key: str, other: str) -> Interval:
        return Interval.of([a - b for a, b in zip(runs.of(OURS, key), runs.of(OURS, other), strict=True)])

    drops = {name: apart(own, f"{name}.score") for name in OTHER_SHELVES}
    checks = (
        mark("sequence score of drawn paths over a second observer's, at least -0.05", apart(own, "people.score"),
             low=-0.05),
        mark("over products drawn by likeness, at least 0.12", apart(own, "by likeness.score"), low=0.12),
        mark("mean behaviour off by at most 0.25", runs.interval(OURS, "drawn.delta"), high=0.25),
        mark("paths that end at the target, at least 0.95", runs.interval(OURS, "drawn.found"), low=0.95),
        mark("lost without the flag, at least 0.1", runs.margin(OURS, NO_FLAG, own), low=0.1),
        mark("behaviour with sines over that with Gaussian codes, at least -0.03",
             runs.margin(SINES, OURS, "drawn.delta"), low=-0.03),
        *(mark(f"lost on shelves of {name}, trained on 3 x 6, at most 0.1", drop, high=0.1)
          for name, drop in drops.items()),
    )  # fmt: skip
    return Verdict(checks, _figures(runs), _charts(runs))


def _figures(runs: Runs) -> dict[str, str]:
    names = {
        "drawn": "OAT, drawn", "likely": "OAT, the most likely", "people": "a second observer",
        "by likeness": "products by likeness", "blindly": "products blindly", "new products": "OAT, new products",
        **{name: f"OAT, shelves of {name}" for name in OTHER_SHELVES},
    }  # fmt: skip
    figures = {}
    for key, name in names.items():
        score, delta = (runs.interval(OURS, f"{key}.{what}") for what in ("score", "delta"))
        figures[f"{name}: sequence score; delta"] = f"{score}; {delta}"
    for variant in (NO_FLAG, SINES):
        score, delta = (runs.interval(variant, f"drawn.{what}") for what in ("score", "delta"))
        figures[f"{variant}: sequence score; delta"] = f"{score}; {delta}"
    return figures


def _charts(runs: Runs) -> tuple[Chart, ...]:
    return (Chart("Drawn paths on held-out shelves", "step", "sequence score", runs.curves()),)


def _run(config: RecipeConfig) -> Verdict:
    seeds, steps = (1, 120) if config.quick else (3, 1000)
    variants = (OURS, NO_FLAG, SINES)
    return judge(measure(config, train_observers, "variant", variants, seeds=seeds, steps=steps))


RECIPE = Recipe(
    name="oat-scanpath",
    paper="arXiv:2407.13335, sections 3 and 4",
    claim="paths of gaze drawn by a pointer over a scene's objects are about as near to a person's as another person's "
    "are; the mark of the target makes the end learnable, and shelves of other shapes need no training",
    run=_run,
)
