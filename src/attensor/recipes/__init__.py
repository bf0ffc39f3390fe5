"""Papers' claims, measured again: one file a paper, each with a `RECIPE` that its card names."""

from __future__ import annotations

import importlib

from attensor.catalogue import cards, mechanism
from attensor.recipes._recipe import Recipe as Recipe
from attensor.recipes._recipe import RecipeConfig as RecipeConfig
from attensor.recipes._recipe import Verdict as Verdict
from attensor.recipes._recipe import ablation as ablation

__all__ = ["Recipe", "RecipeConfig", "Verdict", "ablation", "find"]


def find(name: str) -> Recipe:
    """The recipe that the card called `name` points to.

    Raises:
        ValueError: no such mechanism, or it has no recipe; the message lists those that have one.
    """
    card = mechanism(name)
    if card.recipe is None:
        known = ", ".join(other.name for other in cards().values() if other.recipe)
        raise ValueError(f"{name} has no recipe yet; these have one: {known}.")
    recipe: Recipe = importlib.import_module(card.recipe).RECIPE
    return recipe
