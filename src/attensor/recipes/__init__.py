"""Papers' claims, measured again: one file a paper, each with a `RECIPE`; `attensor reproduce NAME` runs it."""

from __future__ import annotations

import importlib
import pkgutil

from attensor.catalogue import card
from attensor.lab import CellError
from attensor.recipes._recipe import (
    Chart,
    Check,
    Interval,
    Picture,
    Recipe,
    RecipeConfig,
    Tile,
    Verdict,
    run_cells,
)

__all__ = [
    "CellError",
    "Chart",
    "Check",
    "Interval",
    "Picture",
    "Recipe",
    "RecipeConfig",
    "Tile",
    "Verdict",
    "find",
    "names",
    "run_cells",
]


def names() -> list[str]:
    """Names of all recipes: those of the files in this folder, with hyphens."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def find(name: str) -> Recipe:
    """The recipe of that name, or the one that the card of that name points to.

    Raises:
        ValueError: no such recipe or card, or a card without a recipe; the message lists the recipes.
    """
    path = f"{__name__}.{name.replace('-', '_')}" if name in names() else card(name).recipe
    if path is None:
        raise ValueError(f"{name} has no recipe yet; these have one: {', '.join(names())}.")
    recipe: Recipe = importlib.import_module(path).RECIPE
    return recipe
