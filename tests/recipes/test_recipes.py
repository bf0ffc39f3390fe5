"""Recipes: cards lead to them, they judge by the figures, and failures are said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from attensor import cli, recipes
from attensor.catalogue import cards
from attensor.compare.config import CompareConfig
from attensor.errors import LawError
from attensor.recipes import RecipeConfig, Verdict, ablation

ORDERED = {"linear": 3.3, "lightning": 3.2, "scalar-gated": 2.7, "gla": 2.6}


def pretend(monkeypatch: pytest.MonkeyPatch, folder: Path, scores: dict[str, float | None]) -> list[CompareConfig]:
    """Let the comparison end with these scores (None: failed); returns the configurations it is given."""
    seen: list[CompareConfig] = []

    def compare(config: CompareConfig) -> Path:
        seen.append(config)
        rows = [
            {"name": name, "status": "ok", "reason": None, "score": {"mean": score, "spread": 0.0}}
            if score is not None
            else {"name": name, "status": "failed", "reason": "NaN at step 3", "score": None}
            for name, score in scores.items()
        ]
        (folder / "results.json").write_text(json.dumps({"mechanisms": rows}))
        return folder

    monkeypatch.setattr("attensor.compare.run.compare", compare)
    return seen


@pytest.mark.parametrize("card", [card for card in cards().values() if card.recipe], ids=lambda card: card.name)
def test_a_card_leads_to_a_recipe_of_its_name(card: object) -> None:
    name = getattr(card, "name", "")
    assert recipes.find(name).name == name


def test_the_ablation_trains_all_under_one_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = pretend(monkeypatch, tmp_path, dict(ORDERED))
    assert ablation(("linear", "gla"), RecipeConfig(quick=True, out=tmp_path)) == ORDERED
    assert seen[0].mechanisms == "linear,gla"
    assert seen[0].out == str(tmp_path)
    ablation(("gla",), RecipeConfig())
    assert seen[0].steps is not None
    assert seen[1].steps is not None
    assert seen[0].steps < seen[1].steps


def test_a_mechanism_that_fails_fails_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tmp_path, {**ORDERED, "gla": None})
    with pytest.raises(LawError, match="gla was not trained: NaN at step 3"):
        ablation(tuple(ORDERED), RecipeConfig())


@pytest.mark.parametrize(
    ("changed", "holds"),
    [
        ({}, True),
        ({"gla": 2.72}, True),
        ({"gla": 2.74}, False),
        ({"scalar-gated": 3.25, "gla": 3.2}, False),
        ({"lightning": 3.35}, False),
    ],
    ids=str,
)
def test_the_gate_ablation_judges_by_the_order(
    changed: dict[str, float], holds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, tmp_path, {**ORDERED, **changed})
    assert recipes.find("gla").run(RecipeConfig()).holds is holds
    assert cli.main(["reproduce", "gla", "--quick"]) == (0 if holds else 1)


def test_the_report_shows_claim_figures_and_verdict() -> None:
    recipe = recipes.find("gla")
    console = Console(width=150)
    with console.capture() as captured:
        console.print(recipe.report(Verdict(False, {"a gate": "1.234 bits per byte"}), RecipeConfig(quick=True)))
    for part in (recipe.claim, recipe.paper, "a gate", "1.234 bits per byte", "does not hold in a quick run"):
        assert part in captured.get()
