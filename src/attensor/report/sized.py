"""Cost at the reader's own size: the formulas of the cards, for a script to evaluate, with the sizes measured here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from attensor import catalogue
from attensor.report.formulas import formula_text, solve, symbols, tree
from attensor.report.looks import identities
from attensor.report.numbers import DASH, is_number
from attensor.report.reading import Mechanism, Results, field, is_text, ordered

__all__ = ["sized", "symbol_meanings"]

_FREE = {"B", "T", "H", "K", "V"}


def sized(results: Results) -> dict[str, Any]:
    """Rows with formulas and their trees, the start of every input, and the meaning of every symbol."""
    looks = identities(results["mechanisms"])
    rows = []
    for i in ordered(results):
        mechanism = results["mechanisms"][i]
        formula = mechanism.get("formula")
        trees = {key: tree(text) for key in ("flops", "state_bytes") if (text := field(formula, key))}
        if not any(one is not None for one in trees.values()):
            continue
        own = _own_sizes(results, mechanism, trees)
        peaks = [row for row in mechanism.get("cost") or () if is_number(row.get("peak_bytes"))]
        power = field(mechanism, "exponent", "peak_bytes")
        rows.append(
            {
                "group": looks[i].group,
                "look": looks[i],
                "trees": trees,
                "texts": {key: formula_text(field(formula, key)) for key in trees},
                "own": own,
                "exponents": [
                    f"{value:.2f}" if is_number(value := field(mechanism, "exponent", key)) else DASH
                    for key in ("forward", "forward_backward", "peak_bytes")
                ],
                "peak": [peaks[-1]["length"], peaks[-1]["peak_bytes"], power] if peaks and is_number(power) else None,
            }
        )
    start = _start(results)
    return {
        "rows": rows,
        "start": start,
        "measured_width": start["width"],
        "symbols": symbol_meanings(results),
        "decodes": is_text(results),
    }


def _start(results: Results) -> dict[str, int]:
    plan = field(results, "plan") or {}
    return {
        "width": plan.get("hidden_size") or 64,
        "layers": plan.get("num_layers") or 2,
        "heads": plan.get("num_heads") or 2,
        "batch": 1,
        "length": 4096 if is_text(results) else 256,
    }


def symbol_meanings(results: Results) -> dict[str, str]:
    """Symbol -> meaning, for every symbol of the formulas; those of a card only as that card explains them."""
    used = set()
    for mechanism in results["mechanisms"]:
        for key in ("flops", "state_bytes"):
            used |= symbols(tree(field(mechanism, "formula", key) or "0"))
    meanings = {symbol: text for symbol, text in catalogue.SYMBOLS.items() if symbol in used}
    for symbol in sorted(used - set(meanings)):
        told: dict[str, list[str]] = {}
        for mechanism in results["mechanisms"]:
            text = _card_symbols(mechanism).get(symbol)
            if text and symbol in symbols_of(mechanism):
                told.setdefault(text, []).append(str(mechanism.get("name")))
        shared = "; ".join(f"{text} ({', '.join(names)})" for text, names in told.items())
        meanings[symbol] = shared if len(told) > 1 else next(iter(told), "a size of the layer, as in its card")
    return meanings


def symbols_of(mechanism: Mechanism) -> set[str]:
    """The symbols in both formulas of a mechanism."""
    texts = (field(mechanism, "formula", key) for key in ("flops", "state_bytes"))
    return set().union(*(symbols(tree(text)) for text in texts if text))


def _card_symbols(mechanism: Mechanism) -> Mapping[str, str]:
    """From the results where they have them, else from the card of each layer that is named."""
    told = field(mechanism, "formula", "symbols")
    if isinstance(told, Mapping):
        return told
    known = catalogue.mechanisms()
    names = re.findall(r"[\w-]+", str(mechanism.get("name")))
    return {key: text for name in names if name in known for key, text in known[name].symbols.items()}


def _own_sizes(results: Results, mechanism: Mechanism, trees: Mapping[str, Any]) -> dict[str, float | None]:
    """The symbols that are the mechanism's own, at their size in the longest measurement; None where unknown."""
    width, heads = (field(results, "plan", key) for key in ("hidden_size", "num_heads"))
    own: dict[str, float | None] = dict.fromkeys(sorted(symbols_of(mechanism) - _FREE))
    if not own or not is_number(width) or not is_number(heads):
        return own
    told = field(mechanism, "formula", "sizes") or {}
    own |= {symbol: told[symbol] for symbol in own if is_number(told.get(symbol))}
    known = {"B": 1, "H": heads, "K": width / heads, "V": width / heads}
    measured = [
        (trees.get("state_bytes"), "context", "state_bytes", mechanism.get("decode") or ()),
        (trees.get("flops"), "length", "flops", mechanism.get("cost") or ()),
    ]
    for formula, length, key, rows in measured:
        rows = [row for row in rows if row.get("batch", 1) == 1 and is_number(row.get(key))]
        unknown = [s for s in sorted(symbols(formula)) if s in own and own[s] is None] if formula is not None else []
        if not rows or len(unknown) != 1:
            continue
        sizes = known | {s: value for s, value in own.items() if value is not None} | {"T": rows[-1][length]}
        value = solve(formula, unknown[0], sizes, rows[-1][key])
        if value is not None and value > 0 and math.isfinite(value):
            own[unknown[0]] = round(value, 1)
    return own
