"""How the recipe of OAT judges, and one cell of each kind, cut short."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attensor.data.shelves import Shelves
from attensor.recipes import Verdict
from attensor.recipes import oat_scanpath as recipe
from attensor.recipes._runs import Runs


def scores(score: float = 0.5, delta: float = 0.1, found: float = 1.0) -> dict[str, float]:
    return {"score": score, "delta": delta, "found": found, "ceiling": 0.5}


def verdict(*, refused: tuple[str, ...] = ("2 x 8", "4 x 5"), **changed: Any) -> Verdict:
    one = {"drawn": scores(), "likely": scores(0.6, 0.4), "new products": scores(0.4)}
    one |= {"2 x 8": scores(0.45), "4 x 5": scores(0.45)}
    rules = {
        "people": scores(0.5, 0.03), "by likeness": scores(0.33, 0.8), "near the centre": scores(0.1),
        "by contrast": scores(0.1), "blindly": scores(0.06),
    }  # fmt: skip
    no_flag, sines = changed.pop("no_flag", scores(0.3)), changed.pop("sines", scores())
    rules["by likeness"] = changed.pop("likeness", rules["by likeness"])
    one |= changed
    by_variant: dict[str, dict[str, Any]] = {
        recipe.OURS: one, recipe.NO_FLAG: {"drawn": no_flag}, recipe.SINES: {"drawn": sines},
        recipe.FIXED: {"drawn": scores(), "refused": list(refused)},
    }  # fmt: skip
    found = Runs({name: [{**results, "curve": [[5, 0.5]]}] * 3 for name, results in by_variant.items()})
    return recipe.judge(found, Runs({recipe.RULES: [rules] * 3}))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, []),
        ({"drawn": scores(0.44), "no_flag": scores(0.2)}, ["second observer's", "over products"]),
        ({"likeness": scores(0.39)}, ["over products"]),
        ({"drawn": scores(delta=0.3)}, ["mean behaviour", "behaviour with sines"]),
        ({"drawn": scores(found=0.9)}, ["end at the target"]),
        ({"no_flag": scores(0.45)}, ["lost without the flag"]),
        ({"sines": scores(delta=0.05)}, ["behaviour with sines"]),
        ({"2 x 8": scores(0.35)}, ["lost on shelves of 2 x 8"]),
        ({"refused": ("2 x 8",)}, ["fixed outputs refuse shelves of other shapes: 1 of 2"]),
    ],
)
def test_the_verdict_follows_the_numbers(changed: dict[str, Any], words: list[str]) -> None:
    found = verdict(**changed)
    failed = [check.text for check in found.checks if not check.passed]
    assert len(failed) == len(words)
    assert all(word in text for word, text in zip(words, failed))
    assert found.figures["two people there, 4 x 5: sequence score"].startswith("0.500")


@pytest.mark.parametrize("variant", [recipe.OURS, recipe.NO_FLAG, recipe.SINES, recipe.FIXED])
def test_a_cell_of_each_kind(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "SCENES", 20)
    monkeypatch.setattr(recipe, "HELD_OUT", 6)
    found = recipe.train_observers(variant, seed=0, steps=2)
    assert 0 < found["drawn"]["score"] < 1
    assert (found.get("refused") == list(recipe.OTHER_SHELVES)) == (variant == recipe.FIXED)
    if variant == recipe.OURS:
        assert torch.tensor([found[name]["ceiling"] for name in recipe.OTHER_SHELVES]).isfinite().all()


def test_rules_know_how_long_people_look_and_not_whose_path_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "HELD_OUT", 200)
    found = recipe.follow_rules(recipe.RULES, seed=0)
    names = ("by likeness", "near the centre", "by contrast", "blindly")
    people = (recipe._held_out(Shelves(), 0).paths >= 0).sum(1).double().mean().item()
    assert all(found[name]["length"] == pytest.approx(people, abs=0.05) for name in names)
    assert found["people"]["score"] > found["by likeness"]["score"] + 0.1 > found["blindly"]["score"] + 0.2
