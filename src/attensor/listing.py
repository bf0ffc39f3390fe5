"""The catalogue in the terminal: the overview of `attensor list`, the full card of `attensor show`."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from attensor.catalogue import SYMBOLS, Domain, Mechanism, cards, load

__all__ = ["argument_docs", "as_json", "domain_names", "full", "overview", "plain_formula"]


def overview() -> Table:
    """One row a card."""
    caption = "FLOPs: one forward pass of the operator. attensor show NAME prints a card in full."
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("name", no_wrap=True, style="bold")
    table.add_column("title", min_width=14)
    for column in ("mixes", "FLOPs", "state, bytes"):
        table.add_column(column)
    table.add_column("year", no_wrap=True)
    for card in cards().values():
        table.add_row(
            escape(card.name),
            escape(card.title),
            _mixes(card),
            plain_formula(card.flops),
            plain_formula(card.state_bytes) if card.is_causal else "-",
            str(card.paper.year),
        )
    return table


def as_json() -> str:
    """Every card as JSON, for other programs."""
    rows = [
        {
            "name": card.name,
            "title": card.title,
            "domain": domain_names(card.domain),
            "is_causal": card.is_causal,
            "flops": card.flops,
            "state_bytes": card.state_bytes,
            "use": card.use,
            "avoid": card.avoid,
            "operator": card.operator,
            "layer": card.layer,
            "recipe": card.recipe,
            "paper": {"title": card.paper.title, "arxiv": card.paper.arxiv, "year": card.paper.year},
        }
        for card in cards().values()
    ]
    return json.dumps(rows, indent=2) + "\n"


def full(card: Mechanism) -> RenderableType:
    """Everything a card says, and the layer's parameters; imports the layer."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, value in _facts(card):
        facts.add_row(label, value)
    return Group(
        Text(f"{card.name}: {card.title}", style="bold"),
        Padding(facts, (1, 0)),
        Syntax(card.example.strip(), "python", background_color="default"),
        Padding(_parameters(load(card.layer)), (1, 0, 0, 0)),
    )


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


def _facts(card: Mechanism) -> list[tuple[str, str]]:
    used = set(re.findall(r"\b[A-Z]\b", card.flops + " " + card.state_bytes))
    symbols = ", ".join(f"{symbol} {meaning}" for symbol, meaning in SYMBOLS.items() if symbol in used)
    return [
        ("for", escape(card.use)),
        ("not for", escape(card.avoid)),
        ("mixes", _mixes(card)),
        ("FLOPs", plain_formula(card.flops)),
        ("state", f"{plain_formula(card.state_bytes)} bytes a layer" if card.is_causal else "none: it does not decode"),
        ("where", symbols),
        ("paper", f"{escape(card.paper.title)} ({card.paper.year}), {card.paper.url}"),
        ("operator", card.operator.replace(":", ".")),
        ("layer", card.layer.replace(":", ".")),
        ("recipe", f"attensor reproduce {card.name}" if card.recipe else "none yet"),
    ]


def _parameters(layer: Any) -> Table:
    docs = argument_docs(layer)
    table = Table(title=f"{layer.__name__}(...)", title_justify="left")
    for column in ("parameter", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for parameter in inspect.signature(layer).parameters.values():
        default = "" if parameter.default is parameter.empty else repr(parameter.default)
        table.add_row(parameter.name, escape(default), escape(docs.get(parameter.name, "")))
    return table
