"""The catalogue in the terminal: the overview of `attensor list`, the full card of `attensor show`."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from attensor.catalogue import Card, Domain, Mechanism, cards, load

__all__ = ["argument_docs", "as_json", "domain_names", "overview", "plain_formula", "possessions", "show"]

_HOW_TO_GO_ON = "attensor show NAME prints a card in full: costs, options, and code to paste."


def overview(chosen: Iterable[Card] | None = None) -> RenderableType:
    """Two lines a card, of `chosen` or all: its name and title, then what it is for; below them how to go on."""
    found = list(cards().values() if chosen is None else chosen)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for card in found:
        verbs = ", ".join(verb for verb in card.verbs if verb != "use")
        facts = "; ".join(filter(None, (_mixes(card) if isinstance(card, Mechanism) else "", verbs)))
        table.add_row(Text(card.name), Text(card.title).append(f" [{facts}]" if facts else "", style="dim"))
        table.add_row("", Text(card.use, style="dim"))
    return Group(table, Text("\n" + _HOW_TO_GO_ON))


def as_json(chosen: Iterable[Card] | None = None) -> str:
    """Every card of `chosen`, or of all, as JSON, for other programs."""
    rows = []
    for card in cards().values() if chosen is None else chosen:
        # how a comparison or a test builds the layer is nobody else's business
        row = {f.name: getattr(card, f.name) for f in fields(card) if not f.name.endswith("options")}
        row |= {"verbs": card.verbs, "paper": asdict(card.paper)}
        rows.append(row | ({"domain": domain_names(card.domain)} if isinstance(card, Mechanism) else {}))
    return json.dumps(rows, indent=2) + "\n"


def show(card: Card, console: Console) -> None:
    """Print everything a card says, and the parameters of its layers; imports the layers.

    The code is printed without padding and never cut or wrapped, however narrow the console is, so that it can be
    copied.
    """
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, value in _facts(card):
        facts.add_row(label, Text(value))
    console.print(Text(f"{card.name}: {card.title}\n", style="bold"))
    console.print(facts, "")
    code = Syntax("", "python", background_color="default").highlight(card.example.strip())
    code.rstrip()
    console.print(code, soft_wrap=True)
    for layer in card.layers:
        console.print()
        console.print(_parameters(load(layer)))


def possessions(card: Card) -> list[tuple[str, str]]:
    """What a card has beside a mixer, as label and text: models, presets, commands and so on; nothing for no part."""
    found = [
        ("also called", ", ".join(card.aliases)),
        ("system", card.system or ""),
        ("operator", ", ".join(path.replace(":", ".") for path in card.operators)),
        ("layer", ", ".join(path.replace(":", ".") for path in card.layers)),
        ("model", ", ".join(path.replace(":", ".") for path in card.models)),
        ("presets", ", ".join(f"{name} ({count:,} parameters)" for name, count in card.presets.items())),
        ("commands", ", ".join(f"attensor {name}" for name in card.commands)),
        ("swaps into", ", ".join(card.swaps_into)),
        ("recipe", f"attensor reproduce {card.name}" if card.recipe else ""),
        ("breaks", "; ".join(f"{law}: {reason}" for law, reason in card.breaks.items())),
    ]
    return [(label, text) for label, text in found if text]


def plain_formula(formula: str) -> str:
    """A card's formula as one would write it: `4*T*K**2` becomes `4 T K^2`."""
    return formula.replace("**", "^").replace("*", " ")


def domain_names(domain: Domain) -> list[str]:
    """The domains of a card as words."""
    return [str(member.name).lower() for member in Domain if member in domain]


def argument_docs(documented: Any) -> dict[str, str]:
    """Argument -> its description, from the `Args:` section of a Google-style docstring."""
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in (inspect.getdoc(documented) or "").splitlines():
        if not line.startswith(" ") and line:
            inside = line == "Args:"
        elif inside and (entry := re.match(r" {4}(\w[\w, ]*):(.*)", line)):
            names = re.split(r",\s*", entry[1])
            found |= dict.fromkeys(names, entry[2].strip())
        elif inside:
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found


def _mixes(card: Mechanism) -> str:
    return " or ".join(domain_names(card.domain)) + (", causal" if card.is_causal else "")


def _state(card: Mechanism) -> str:
    return plain_formula(card.state_bytes) if card.is_causal else "-"


def _facts(card: Card) -> list[tuple[str, str]]:
    facts = [("for", card.use), ("not for", card.avoid)]
    if isinstance(card, Mechanism):
        symbols = ", ".join(f"{symbol} {meaning}" for symbol, meaning in card.used_symbols.items())
        state = f"{_state(card)} bytes a layer" if card.is_causal else "none: it does not decode"
        facts += [("mixes", _mixes(card)), ("FLOPs", plain_formula(card.flops)), ("state", state), ("where", symbols)]
    paper = ("paper", f"{card.paper.title} ({card.paper.year}), {card.paper.url}")
    return [*facts, paper, *possessions(card)]


def _parameters(layer: Any) -> Table:
    docs = argument_docs(layer)
    title = f"{layer.__name__}(...)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("parameter", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for parameter in inspect.signature(layer).parameters.values():
        default = "" if parameter.default is parameter.empty else repr(parameter.default)
        table.add_row(parameter.name, escape(default), escape(docs.get(parameter.name, "")))
    return table
