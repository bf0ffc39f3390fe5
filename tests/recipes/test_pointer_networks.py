"""How the recipe of pointer networks judges, and one cell of each kind, cut short."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attensor.data.points import draw_instances
from attensor.recipes import pointer_networks as recipe
from attensor.recipes._runs import Runs

SEEDS, CURVE = range(3), [[5, 0.5]]


def alike(scores: Any) -> list[dict[str, Any]]:
    return [{"curve": CURVE, "scores": scores} for _ in SEEDS]


def hulls(area: float | None = 0.99, **right: float) -> Runs:
    accuracy = {"5": 0.8, "8": 0.7, "10": 0.6, "12": 0.5, "15": 0.4, "20": 0.2} | {
        name[1:]: value for name, value in right.items()
    }
    return Runs({recipe.POINTER: alike({n: {"accuracy": a, "area": area} for n, a in accuracy.items()})})


def order(pointer: float = 0.6, attention: float = 0.4, plain: float = 0.2) -> Runs:
    found = {recipe.POINTER: pointer, recipe.ATTENTION: attention, recipe.PLAIN: plain}
    return Runs({name: alike({"accuracy": right, "area": None}) for name, right in found.items()})


def tours(**changed: float) -> Runs:
    one = {"valid": 1.0, "free": 0.9, "gap": 0.02, "length": 2.2, "best": 2.1, "nearest": 2.4, "christofides": 2.3}
    return Runs({recipe.POINTER: alike(dict.fromkeys(("5", "8", "10"), one | changed))})


def triangles(found: float = 0.8, shuffled: float = 0.6) -> Runs:
    scores = {recipe.SORTED: found, recipe.SHUFFLED: shuffled}
    return Runs({name: alike({"coverage": one, "accuracy": one}) for name, one in scores.items()})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, []),
        ({"hulls": hulls(n5=0.6)}, ["hulls of 5"]),
        ({"hulls": hulls(n10=0.4)}, ["hulls of 10"]),
        ({"hulls": hulls(n15=0.2)}, ["hulls of 15"]),
        ({"hulls": hulls(area=None)}, ["share of the area"]),
        ({"order": order(pointer=0.45)}, ["pointer over attention"]),
        ({"order": order(plain=0.35)}, ["attention over none"]),
        ({"tours": tours(valid=0.99)}, ["all constrained"]),
        ({"tours": tours(free=1.0)}, ["unconstrained"]),
        ({"tours": tours(gap=0.05)}, ["tours of 5"]),
        ({"tours": tours(gap=0.07)}, ["tours of 5", "tours of 8"]),
        ({"tours": tours(nearest=2.1)}, ["tours of 8 cities, of the nearest"]),
        ({"triangles": triangles(found=0.7)}, ["triangles of 5"]),
        ({"triangles": triangles(shuffled=0.85)}, ["sorted over shuffled"]),
    ],
)
def test_a_mark_is_missed_for_its_own_reason(changed: dict[str, Runs], words: list[str]) -> None:
    given = {"hulls": hulls(), "order": order(), "tours": tours(), "triangles": triangles()} | changed
    verdict = recipe.judge(**given)
    missed = [check.text for check in verdict.checks if check.mark != "reached"]
    assert len(missed) == len(words)
    assert all(text.startswith(word) for text, word in zip(missed, words, strict=True))
    assert verdict.figures["hull, 10 -> 10, plain: area"] == "FAIL"


def test_rules_of_others_are_above_the_shortest() -> None:
    found = recipe._rules(draw_instances("tsp", 20, 8, seed=0))
    assert found["best"] < found["christofides"] < 1.5 * found["best"]
    assert found["best"] < found["nearest"]


@pytest.mark.parametrize(
    ("cell", "variant"),
    [
        (recipe.train_hulls, recipe.POINTER),
        (recipe.train_order, recipe.PLAIN),
        (recipe.train_tours, recipe.POINTER),
        (recipe.train_triangles, recipe.SHUFFLED),
    ],
)
def test_a_cell_gives_its_scores(cell: Any, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "TESTED", 4)
    torch.manual_seed(0)
    found = cell(variant, 0, 3)
    assert len(found["curve"]) == 3
    assert found["scores"]
