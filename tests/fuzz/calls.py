"""Calls as text: a function and an expression for each argument, so that whatever is found is one line to paste."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor

import attensor
from attensor import edit, metrics, models, nn, ops, parallel, sites, train
from attensor.edit import task, trial
from attensor.lens import decode, indicators, operator
from attensor.metrics import classification, intervals, polygons, receptive_field, retrieval, scanpath, student
from attensor.models import convert, language, pointing, vision
from attensor.models.knowledge import memory, saved, scorers, tensor_brain
from attensor.models.language import convert as language_convert
from attensor.models.language import deconstructed, deepseek, gla, pldr, stack, transnormer
from attensor.models.pointing import places
from attensor.models.pointing import pointing as pointing_base
from attensor.models.vision import axial_transformer, davit, dit, halonet, l2vit, maxvit, nat, ravlt, transnext
from attensor.train import brain as train_brain
from attensor.train import image as train_image
from attensor.train import image_recipe, loop, optimizer
from attensor.train import points as train_points
from attensor.train import scanpaths as train_scanpaths
from attensor.train import triples as train_triples
from tests.fuzz import samples

Rules = Callable[[dict[str, Any]], "str | None"]


@dataclass(frozen=True)
class Call:
    """What is called with what.

    Attributes:
        title: row of the table.
        target: expression of what is called.
        arguments: name -> expression.
        kinds: name -> kind, see `kinds.check`; a trailing "?" allows None.
        rules: of the arguments among each other: raises `Illegal`; a text says what the documentation leaves open.
        says: beginnings that the text of an error may have.
        reference: expression of what must give the same numbers.
        is_constructor: a nonsense type may end in Python's own TypeError.
        corrupted: name -> what was done to it.
        legal: the arguments before that.
    """

    title: str
    target: str
    arguments: dict[str, str]
    kinds: Mapping[str, str]
    rules: Rules
    says: tuple[str, ...]
    reference: str | None = None
    is_constructor: bool = False
    corrupted: dict[str, str] = field(default_factory=dict)
    legal: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.target}({', '.join(f'{name}={text}' for name, text in self.arguments.items())})"


class Illegal(Exception):
    """What the documentation does not allow."""


def need(condition: Any, why: str) -> None:
    """Raise `Illegal` unless it holds."""
    if not condition:
        raise Illegal(why)


def used(layer: Any, batch_size: int, tokens: int) -> Any:
    """A cache of the layer that has seen some tokens."""
    cache, like = layer.new_cache(batch_size), next(layer.parameters())
    with torch.no_grad():
        layer(torch.zeros(batch_size, tokens, layer.hidden_size, dtype=like.dtype), cache=cache)
    return cache


def entered(manager: Any) -> Callable[..., None]:
    """A context manager as a function."""

    def enter(**arguments: Any) -> None:
        with manager(**arguments):
            pass

    return enter


def listed(iterator: Any) -> Callable[..., list[Any]]:
    """A generator as a function."""
    return lambda **arguments: list(iterator(**arguments))


_MODULES = (
    attensor, edit, metrics, models, nn, ops, parallel, sites, train, task, trial, decode, indicators, operator,
    classification, intervals, polygons, receptive_field, retrieval, scanpath, student, convert, language, pointing,
    vision, memory, saved, scorers, tensor_brain, deconstructed, deepseek, gla, pldr, stack, transnormer, places,
    axial_transformer, davit, dit, halonet, l2vit, maxvit, nat, ravlt, transnext, image_recipe, loop, optimizer,
)  # fmt: skip
NAMES: dict[str, Any] = {
    **{module.__name__.rpartition(".")[2]: module for module in _MODULES},
    **{name: getattr(samples, name) for name in samples.__all__},
    "language_convert": language_convert,
    "pointing_base": pointing_base,
    "train_brain": train_brain,
    "train_image": train_image,
    "train_points": train_points,
    "train_scanpaths": train_scanpaths,
    "train_triples": train_triples,
    "torch": torch,
    "numpy": numpy,
    "indicators": indicators.indicators,
    "top_hits": classification.top_hits,
    "used": used,
    "entered": entered,
    "listed": listed,
    "nan": float("nan"),
    "inf": float("inf"),
}


def evaluate(text: str) -> Any:
    """The value of an expression."""
    return eval(text, NAMES)


def values_of(arguments: Mapping[str, str]) -> dict[str, Any]:
    """The values of all arguments, with the same random numbers each time."""
    torch.manual_seed(0)
    return {name: evaluate(text) for name, text in arguments.items()}


def tensors_in(result: Any) -> list[Tensor]:
    """The tensors of a result, those inside of lists and tuples in order."""
    if isinstance(result, Tensor):
        return [result]
    return [x for part in result for x in tensors_in(part)] if isinstance(result, (tuple, list)) else []


def randn(dtype: str, *sizes: int) -> str:
    """Expression of normal numbers."""
    return f"torch.randn({', '.join(map(str, sizes))}{'' if dtype == 'float32' else f', dtype=torch.{dtype}'})"


def some_dtype(rng: random.Random) -> str:
    """A floating dtype's name."""
    return rng.choices(["float32", "float64", "float16", "bfloat16"], [5, 3, 1, 1])[0]


def size(rng: random.Random, usual: Sequence[int]) -> int:
    """One of the sizes, or now and then none."""
    return 0 if rng.random() < 0.03 else rng.choice(usual)


def packing(rng: random.Random, tokens: int) -> list[int]:
    """Bounds of some sequences over so many tokens; one may be empty."""
    return sorted([0, tokens, *(rng.randint(0, tokens) for _ in range(rng.randint(0, 3)))])


def optional(rng: random.Random, share: float, **given: str) -> dict[str, str]:
    """The arguments, or none of them."""
    return given if rng.random() < share else {}


def pick(rng: random.Random, values: Sequence[Any]) -> str:
    """One of the values as an expression."""
    return repr(rng.choice(values))
