"""The single list of mechanisms: one card each, found in `attensor/cards/`, one file a mechanism.

The command line, the conformance tests, the benchmarks, the comparison and the documentation iterate over
`cards()`. A card names things by import path, so that reading the catalogue imports neither torch nor a layer.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sympy
    from torch import nn

__all__ = ["Domain", "Mechanism", "Paper", "build_mixer", "cards", "load", "mechanism"]


class Domain(Flag):
    """What a mechanism mixes: tokens in a row, cells of a grid, or either."""

    SEQUENCE = auto()
    GRID = auto()


@dataclass(frozen=True)
class Paper:
    """Where a mechanism comes from."""

    arxiv: str
    year: int
    title: str

    @property
    def url(self) -> str:
        """Address of the abstract."""
        return f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True)
class Mechanism:
    """One card of the catalogue.

    `flops` and `state_bytes` are formulas in the symbols of `SYMBOLS`, written as text and read by sympy when asked:
    the forward cost of the operator in floating-point operations, and the decode state of one layer in bytes (float32)
    after T tokens. `layer.cost_sizes(space)` gives the values of all symbols but B for an input of that size.

    Attributes:
        name: what is typed on the command line.
        operator: `"module:function"` of the operator that does the work.
        layer: `"module:Class"` of the mixer layer, built as `Class(hidden_size, num_heads, **options)`.
        recipe: module whose `RECIPE` re-measures the paper's claim.
        options: keyword arguments of the layer in a comparison; `sequence_options` and `grid_options` add to them.
        example: three lines of code, ready to paste.
        example_options: keyword arguments that make a small legal layer for the conformance tests.
        building_blocks: `"module:function"` of further public operators that it is made of.
        variants: name -> further options of the layer, each of which must obey the same laws.
    """

    name: str
    title: str
    paper: Paper
    use: str
    avoid: str
    operator: str
    layer: str
    domain: Domain
    is_causal: bool
    flops: str
    state_bytes: str
    example: str
    recipe: str | None = None
    building_blocks: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    sequence_options: dict[str, Any] = field(default_factory=dict)
    grid_options: dict[str, Any] = field(default_factory=dict)
    example_options: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)

    def cost(self, formula: str, **sizes: int) -> int:
        """Evaluate `"flops"` or `"state_bytes"`, for instance `cost("flops", B=1, **layer.cost_sizes((1024,)))`.

        Raises:
            ValueError: a symbol of the formula has no size.
        """
        expression = self.formula(formula)
        missing = sorted(symbol.name for symbol in expression.free_symbols if symbol.name not in sizes)
        if missing:
            raise ValueError(f"{self.name}: the formula {formula} = {expression} needs {', '.join(missing)} as well.")
        return int(expression.subs({symbol: sizes[symbol.name] for symbol in expression.free_symbols}))

    def formula(self, which: str) -> sympy.Expr:
        """The formula as a sympy expression of positive integer symbols."""
        import sympy

        symbols = {s: sympy.Symbol(s, positive=True, integer=True) for s in SYMBOLS}
        return sympy.sympify(getattr(self, which), locals={**symbols, "Min": sympy.Min, "Max": sympy.Max})

    def mixer_options(self, domain: Domain) -> dict[str, Any]:
        """Layer options for a comparison in one domain."""
        return {**self.options, **(self.grid_options if domain is Domain.GRID else self.sequence_options)}


SYMBOLS = {
    "B": "sequences or images in the batch",
    "T": "tokens (cells of the grid)",
    "H": "heads",
    "K": "key width of a head",
    "V": "value width of a head",
    "C": "tokens in a chunk",
    "F": "features of a query or key",
    "W": "keys a query sees (product of the window over the axes)",
    "M": "keys a query is multiplied with: those it sees and those that share their tile, on average",
    "X": "length of the attended axis",
}


@functools.cache
def cards() -> dict[str, Mechanism]:
    """All cards by name, in alphabetical order of their files."""
    package = importlib.import_module("attensor.cards")
    modules = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    found = [importlib.import_module(f"attensor.cards.{m}").CARD for m in modules]
    return {card.name: card for card in found}


def mechanism(name: str) -> Mechanism:
    """The card of that name; an unknown name lists the known ones and the nearest.

    Raises:
        ValueError: no card of that name.
    """
    known = cards()
    if name not in known:
        import difflib

        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no mechanism is called {name!r}; the catalogue has {', '.join(known)}.{hint}")
    return known[name]


def load(path: str) -> Any:
    """Import what `"package.module:name"` points to."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def build_mixer(
    layer: type[nn.Module], hidden_size: int, num_heads: int, *, layer_index: int, num_layers: int, **options: Any
) -> nn.Module:
    """One mixer of a stack: `layer_index` and `num_layers` are passed on to layers that ask for them."""
    accepted = inspect.signature(layer).parameters
    position = {"layer_index": layer_index, "num_layers": num_layers}
    return layer(hidden_size, num_heads, **{k: v for k, v in position.items() if k in accepted}, **options)
