"""The single list of systems: one card each, found in `attensor/cards/`, one file a card, and in other distributions.

The command line, the conformance tests, the benchmarks, the comparison and the documentation iterate over `cards()`,
or over `mechanisms()`, those that mix tokens. A card names things by import path, so that reading the catalogue
imports neither torch nor a layer. Another distribution adds cards as entry points of the group `attensor.cards`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Flag, auto
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import sympy
    from torch import nn

__all__ = [
    "Card",
    "Domain",
    "Mechanism",
    "Paper",
    "build_mixer",
    "card",
    "cards",
    "find_name",
    "load",
    "mechanism",
    "mechanisms",
    "named",
    "parse_stack",
    "parts",
]

Named = TypeVar("Named")

ENTRY_POINTS = "attensor.cards"
SYMBOLS = {
    "B": "sequences or images in the batch",
    "T": "tokens (cells of the grid)",
    "H": "heads",
    "K": "key width of a head",
    "V": "value width of a head",
}
# verb -> the first words of the commands that give it; `bench` measures and is no use of its own
_VERBS = {"look": ("lens",), "edit": ("edit",), "solve": ("solve", "train", "plan")}

# commands that take every model of a package: a card with such a model has them without saying it
_OF_MODELS = {
    "attensor.models.vision": {
        "train image": "attensor.commands.train_image:TrainImage",
        "bench vision": "attensor.commands.bench_vision:BenchVision",
    }
}

_WIDEST = 80  # a line of code fits a terminal
_MOST_LAYERS = 1000
_EXAMPLE = """
import torch; from attensor import nn
{layer}
out = layer(torch.randn(2, {space}, 64))
"""


class Domain(Flag):
    """What a mechanism mixes: tokens in a row, cells of a grid, or either."""

    SEQUENCE = auto()
    GRID = auto()


@dataclass(frozen=True)
class Paper:
    """Where a system comes from."""

    arxiv: str
    year: int
    title: str

    @property
    def url(self) -> str:
        """Address of the abstract."""
        return f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a system is and where its parts are; it states only what it has.

    Attributes:
        name: what is typed on the command line.
        aliases: what others call it, in lower case with hyphens; understood wherever a name is read.
        use, avoid: what it is for, and what it is not for.
        example: three statements, ready to paste, in lines of at most 80 characters.
        system: name of the whole system, where the card's is another.
        operators: `"module:function"` of the public operators that do the work.
        layers: `"module:Class"` of its layers.
        models: `"module:Class"` of whole models; the class has `presets` (name -> configuration) and `tiny`, one
            small enough for tests.
        presets: published model -> its number of parameters, known here without importing the model.
        commands: what is typed after `attensor` -> `"module:Class"` of a dataclass with `run()`, for instance
            `{"bench linear": "attensor.commands.bench_linear:BenchLinear"}`. Those that take every model of a package,
            as `train image` does, are added for a card with such a model.
        swaps_into: kinds of foreign models that take it in the place of their own part.
        recipe: module whose `RECIPE` measures the paper's claim again.
        breaks: law of `tests/conformance/test_laws.py` -> why it cannot hold by definition.
    """

    name: str
    title: str
    paper: Paper
    use: str
    avoid: str
    example: str
    aliases: tuple[str, ...] = ()
    system: str | None = None
    operators: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    presets: dict[str, int] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    swaps_into: tuple[str, ...] = ()
    recipe: str | None = None
    breaks: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Add the commands that its models bring."""
        brought = {
            words: path
            for package, commands in _OF_MODELS.items()
            if any(model.startswith(f"{package}.") for model in self.models)
            for words, path in commands.items()
        }
        object.__setattr__(self, "commands", brought | self.commands)

    @property
    def verbs(self) -> tuple[str, ...]:
        """What can be done with it: use, model, swap, look, edit, solve, reproduce."""
        typed = {command.partition(" ")[0] for command in self.commands}
        can = {
            "use": self.operators or self.layers,
            "model": self.models,
            "swap": self.swaps_into,
            **{verb: typed.intersection(words) for verb, words in _VERBS.items()},
            "reproduce": self.recipe,
        }
        return tuple(verb for verb, means in can.items() if means)


@dataclass(frozen=True, kw_only=True)
class Mechanism(Card):
    """The card of a system that mixes tokens: its layer can stand in any model.

    `flops` and `state_bytes` are formulas in the symbols of `SYMBOLS` and of the card, written as text and read by
    sympy when asked: the forward cost of the operator in floating-point operations, and the decode state of one layer
    in bytes (float32) after T tokens. `layer.cost_sizes(space)` gives the values of all symbols but B for an input of
    that size.

    Attributes:
        equation: LaTeX of what a token receives: its output o_i from queries q, keys k and values v, through a state S.
        terms: meaning of the equation's other symbols, in LaTeX.
        operator: `"module:function"` of the operator that does the work, the first of `operators`.
        layer: `"module:Class"` of the mixer layer, built as `Class(hidden_size, num_heads, **options)`; the first of
            `layers`.
        symbols: meaning of the symbols that this card's formulas use beside `SYMBOLS`.
        options: keyword arguments of the layer in a comparison; on grids `grid_options` add to them.
        shown_options: keyword arguments in `example`, made from them for a layer of `attensor.nn` if not given.
        example_options: keyword arguments that make a small legal layer for the conformance tests.
        variants: name -> further options of the layer, each of which must obey the same laws.
        is_compared: part of a comparison that names no mechanisms; the more there are, the less time each has.
    """

    operator: str
    layer: str
    equation: str = ""
    terms: dict[str, str] = field(default_factory=dict)
    domain: Domain
    is_causal: bool
    flops: str
    state_bytes: str
    symbols: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    grid_options: dict[str, Any] = field(default_factory=dict)
    example_options: dict[str, Any] = field(default_factory=dict)
    shown_options: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    is_compared: bool = True
    example: str = ""

    def __post_init__(self) -> None:
        """Put its operator and layer first among those of the card, and show how the layer is used."""
        super().__post_init__()
        object.__setattr__(self, "operators", tuple(dict.fromkeys((self.operator, *self.operators))))
        object.__setattr__(self, "layers", tuple(dict.fromkeys((self.layer, *self.layers))))
        if not self.example:
            name, options = self.layer.partition(":")[2], {"hidden_size": 64, "num_heads": 4} | self.shown_options
            arguments = [f"{option}={value!r}" for option, value in options.items()]
            layer = f"layer = nn.{name}({', '.join(arguments)})"
            if len(layer) > _WIDEST:
                layer = f"layer = nn.{name}(\n    {', '.join(arguments)}\n)"
            space = "1000" if Domain.SEQUENCE in self.domain else "32, 32"
            object.__setattr__(self, "example", _EXAMPLE.format(layer=layer, space=space))

    @property
    def used_symbols(self) -> dict[str, str]:
        """Symbol -> meaning, for those in the two formulas."""
        used = re.findall(r"\b[A-Z]\b", f"{self.flops} {self.state_bytes}")
        return {symbol: meaning for symbol, meaning in {**SYMBOLS, **self.symbols}.items() if symbol in used}

    def cost(self, formula: str, **sizes: int) -> int:
        """Evaluate `"flops"` or `"state_bytes"`, for instance `cost("flops", B=1, **layer.cost_sizes((1024,)))`.

        Raises:
            ValueError: a symbol of the formula has no size.
        """
        expression = self.formula(formula)
        missing = sorted({symbol.name for symbol in expression.free_symbols} - sizes.keys())
        if missing:
            raise ValueError(f"{self.name}: the formula {formula} = {expression} needs {', '.join(missing)} as well.")
        return int(expression.subs({symbol: sizes[symbol.name] for symbol in expression.free_symbols}))

    def formula(self, which: str) -> sympy.Expr:
        """The formula as a sympy expression of positive integer symbols."""
        import sympy

        symbols = {s: sympy.Symbol(s, positive=True, integer=True) for s in self.used_symbols}
        return sympy.sympify(getattr(self, which), locals={**symbols, "Min": sympy.Min, "Max": sympy.Max})

    @property
    def state_parts(self) -> tuple[sympy.Expr, sympy.Expr]:
        """The decode state of a sequence, `state_bytes` with B = 1: bytes a token, and bytes whatever the length.

        Raises:
            ValueError: the formula is no line in T.
        """
        symbols = {symbol.name: symbol for symbol in self.formula("state_bytes").free_symbols}
        state = self.formula("state_bytes").subs(symbols.get("B", 1), 1).expand()
        tokens = symbols.get("T")
        if tokens is None:
            return state * 0, state
        by_token, fixed = state.coeff(tokens, 1), state.coeff(tokens, 0)
        if (state - by_token * tokens - fixed).expand() != 0:
            raise ValueError(f"{self.name}: state_bytes must be linear in T, got {self.state_bytes}.")
        return by_token, fixed

    def mixer_options(self, domain: Domain) -> dict[str, Any]:
        """Layer options for a comparison in one domain."""
        return {**self.options, **(self.grid_options if domain is Domain.GRID else {})}


@functools.cache
def cards() -> dict[str, Card]:
    """All cards by name: those of attensor in alphabetical order of their files, then those of other distributions."""
    package = importlib.import_module("attensor.cards")
    modules = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    own = [importlib.import_module(f"attensor.cards.{m}").CARD for m in modules]
    found: dict[str, Card] = {one.name: one for one in own}
    for point in metadata.entry_points(group=ENTRY_POINTS):
        whose = f"attensor.cards: {point.name} = {point.value!r} of {point.dist.name if point.dist else 'unknown'}"
        try:
            one = point.load()
        except Exception as error:  # whatever another distribution does, attensor works
            warnings.warn(f"{whose} is left out, it cannot be imported: {error!r}", stacklevel=2)
            continue
        if not isinstance(one, Card) or one.name in found:
            why = f"a card is called {one.name!r} already" if isinstance(one, Card) else "it is no Card"
            warnings.warn(f"{whose} is left out: {why}.", stacklevel=2)
            continue
        found[one.name] = one
    return found


def mechanisms() -> dict[str, Mechanism]:
    """The cards that mix tokens, by name, in the order of `cards`."""
    return {name: one for name, one in cards().items() if isinstance(one, Mechanism)}


def card(name: str) -> Card:
    """The card of that name; an unknown name lists the known ones and the nearest.

    Raises:
        ValueError: no card of that name.
    """
    return named("card", find_name(name) or name, cards(), _aliases())


def mechanism(name: str) -> Mechanism:
    """The mechanism of that name; an unknown name lists the known ones and the nearest.

    Raises:
        ValueError: no mechanism of that name.
    """
    return named("mechanism", find_name(name) or name, mechanisms(), _aliases())


def find_name(text: str) -> str | None:
    """The name of the card that somebody means: a name or an alias, in any case, with hyphens or underscores."""
    if not isinstance(text, str):
        raise TypeError(f"find_name: text must be a string, got {type(text).__name__}.")
    word = text.strip().lower().replace("_", "-").replace(" ", "-")
    return next((one.name for one in cards().values() if word in (one.name.lower(), *one.aliases)), None)


def named(kind: str, name: str, known: Mapping[str, Named], others: Mapping[str, str] | None = None) -> Named:
    """What is known by that name.

    Args:
        kind: of what is looked for, for the message.
        name: as typed.
        known: by name.
        others: further spellings of names, for what may have been meant.
    Raises:
        ValueError: an unknown name; the message lists the known ones and the nearest.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a {kind} must be a string, got {type(name).__name__}; `attensor list` shows all.")
    if name in known:
        return known[name]
    meant = {text.lower(): one for text, one in ({one: one for one in known} | dict(others or {})).items()}
    near = difflib.get_close_matches(name.lower(), [text for text, one in meant.items() if one in known], n=1)
    also = f" (the card {meant[near[0]]!r})" if near and meant[near[0]].lower() != near[0] else ""
    hint = f" Did you mean {near[0] if also else meant[near[0]]!r}{also}?" if near else ""
    raise ValueError(f"no {kind} is called {name!r}; the catalogue has {', '.join(known)}.{hint}")


def _aliases() -> dict[str, str]:
    return {alias: one.name for one in cards().values() for alias in one.aliases}


def parse_stack(text: str) -> tuple[str, ...]:
    """The mechanisms of a stack of layers: `"3*gla+softmax"` gives `("gla", "gla", "gla", "softmax")`.

    Raises:
        ValueError: an unknown mechanism, text of another form, or more than 1000 layers.
    """
    names: list[str] = []
    if not isinstance(text, str):
        raise TypeError(f'parse_stack: text must be a string, as "3*gla+softmax", got {type(text).__name__}.')
    for part in text.split("+"):
        form = re.fullmatch(r"\s*(?:([1-9]\d*)\s*\*\s*)?([^*\s]+)\s*", part)
        if form is None:
            raise ValueError(f"stack {text!r}: {part!r} must be a mechanism or COUNT*mechanism, as in 3*gla+softmax.")
        count = int(form[1] or 1) if len(form[1] or "") < 9 else _MOST_LAYERS + 1
        if len(names) + count > _MOST_LAYERS:
            raise ValueError(f"stack {text!r}: has more than {_MOST_LAYERS} layers; give a smaller COUNT.")
        names += [mechanism(form[2]).name] * count
    return tuple(names)


def load(path: str) -> Any:
    """Import what `"package.module:name"` points to."""
    if not isinstance(path, str) or not re.fullmatch(r"[\w.]+:\w+", path):
        raise ValueError(f"load: path must be a string package.module:name, got {path!r:.80}.")
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def parts(package: str, kind: str) -> dict[str, str]:
    """Class name -> import path, for the `"layers"` or `"models"` of all cards that are in that package."""
    paths = (path for one in cards().values() for path in getattr(one, kind))
    return {path.partition(":")[2]: path for path in paths if path.startswith(f"{package}.")}


def build_mixer(
    layer: type[nn.Module],
    hidden_size: int,
    num_heads: int,
    *,
    layer_index: int,
    num_layers: int,
    space: tuple[int, ...] | None = None,
    **options: Any,
) -> nn.Module:
    """One mixer of a stack; what is not an option is passed on only to layers that ask for an argument of that name.

    Args:
        layer: class of the mixer.
        hidden_size: channels.
        num_heads: heads.
        layer_index, num_layers: place in the stack.
        space: length of the sequences or sides of the grid, for mixers with a fixed number of tokens.
        options: keyword arguments of the layer.
    """
    accepted = inspect.signature(layer).parameters
    offered = {"num_heads": num_heads, "layer_index": layer_index, "num_layers": num_layers, "space": space}
    given = {name: value for name, value in offered.items() if name in accepted} | options
    # a user's class may call its heads otherwise: a second argument that nothing else fills
    places = [p for p in accepted.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    second = places[1] if len(places) > 1 else None
    heads = [num_heads] if second and second.name not in given and second.default is second.empty else []
    return layer(hidden_size, *heads, **given)
