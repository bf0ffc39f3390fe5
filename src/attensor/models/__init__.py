"""Architectures that take their mixer as an argument, and `create`, which builds published models by their names.

A whole model is found through its card in the catalogue, as layers are in `attensor.nn`.
"""

from __future__ import annotations

from typing import Any

from attensor import catalogue
from attensor.models import language as language
from attensor.models import vision as vision
from attensor.models.create import create as create
from attensor.models.create import model_names as model_names
from attensor.models.create import register_with_timm as register_with_timm


def _models() -> dict[str, str]:
    """Class name -> import path, for the models of all cards in this package."""
    paths = (path for card in catalogue.cards().values() for path in card.models)
    return {path.partition(":")[2]: path for path in paths if path.startswith(f"{__name__}.")}


def __getattr__(name: str) -> Any:
    path = None if name.startswith("_") else _models().get(name)
    if path is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its models are {', '.join(_models())}")
    return catalogue.load(path)


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if not name.startswith("_")), *_models()})
