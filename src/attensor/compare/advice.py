"""What to paste for a mechanism, and its price against the baseline."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from attensor import catalogue
from attensor.catalogue import Domain
from attensor.compare.readings import Readings, decode_states, layer_memory, layer_times
from attensor.report.numbers import milliseconds, short, size

__all__ = ["BASELINE", "code", "price"]

Row = Mapping[str, Any]
BASELINE = "softmax"
# ratios nearer to 1 than this are not worth a word
_SAME = 1.1


def code(results: Row, row: Row) -> str:
    """A line that makes the layer in the size that was compared; a user's own class by its import."""
    plan = results.get("plan") or {}
    sizes = plan.get("hidden_size") or 64, plan.get("num_heads") or 2
    if row.get("source") != "catalogue":
        file, _, name = str(row.get("source")).rpartition(":")
        return f"from {file.removesuffix('.py')} import {name}; layer = {name}({sizes[0]}, {sizes[1]})"
    try:
        names = catalogue.parse_stack(row["name"])
        cards = [catalogue.mechanism(name) for name in names]
    except ValueError:  # a card that this installation does not have
        return f'attensor.catalogue.mechanism("{row["name"]}")'
    is_text = results["data"]["kind"] == "text"
    if len(cards) == 1:
        return f"import attensor; layer = {_layer(cards[0], is_text, *sizes)}"
    if is_text:
        where = "from attensor.models.language.stack import StackConfig"
        return f'{where}; config = StackConfig(layers="{row["name"]}", num_hidden_layers={plan.get("num_layers") or 2})'
    return f"import attensor; layers = [{', '.join(_layer(card, is_text, *sizes) for card in cards)}]"


def _layer(card: catalogue.Mechanism, is_text: bool, hidden_size: int, num_heads: int) -> str:
    """`attensor.nn.Layer(...)`, with what the comparison gave it."""
    accepted = inspect.signature(catalogue.load(card.layer)).parameters
    given = {"hidden_size": hidden_size, "num_heads": num_heads, "layer_index": 0, "num_layers": 1}
    needed = {k: v for k, v in given.items() if k in accepted and accepted[k].default is inspect.Parameter.empty}
    options = needed | card.mixer_options(Domain.SEQUENCE if is_text else Domain.GRID)
    module, _, name = card.layer.partition(":")
    where = "attensor.nn" if module.startswith("attensor.nn.") else module
    return f"{where}.{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"


def price(results: Row, row: Row, length: int | None, *, is_shortest: bool = False) -> str:
    """Time, memory and state against softmax, or the numbers themselves where that is not compared.

    Times within the noise are called the same.

    Args:
        results: as in results.json.
        row: whose price.
        length: tokens or cells; that both reached and nearest to this from below counts, or
        is_shortest: from above.
    """
    base = next((one for one in results["mechanisms"] if one["name"] == BASELINE), None)
    units = "tokens" if results["data"]["kind"] == "text" else "cells"
    if base is row:
        return f"{BASELINE} is what the others are compared with"
    if base is None:
        return _alone(row, units)
    parts = []
    if at := _at(layer_times(row), layer_times(base), length, is_shortest):
        ratio = layer_times(row)[at].ratio(layer_times(base)[at])
        parts.append(f"{_times(ratio, 'time')} of {BASELINE} at {short(at)} {units}")
    if at := _at(layer_memory(row), layer_memory(base), length, is_shortest):
        parts.append(_times(layer_memory(row)[at].value / layer_memory(base)[at].value, "memory"))
    if at := _at(decode_states(row), decode_states(base), length, is_shortest):
        ratio = decode_states(row)[at].value / decode_states(base)[at].value
        parts.append(f"{_times(ratio, 'state')} after {short(at)} {units}")
    return ", ".join(parts)


def _alone(row: Row, units: str) -> str:
    parts = []
    if times := layer_times(row):
        parts.append(f"{milliseconds(times[max(times)].value)} forward and backward at {short(max(times))} {units}")
    if memory := layer_memory(row):
        parts.append(f"{size(memory[max(memory)].value)} of memory")
    if states := decode_states(row):
        parts.append(f"{size(states[max(states)].value)} of state after {short(max(states))} {units}")
    return ", ".join(parts)


def _at(one: Readings, other: Readings, length: int | None, is_shortest: bool) -> int | None:
    common = one.keys() & other.keys()
    if is_shortest:
        return min((n for n in common if length is None or n >= length), default=max(common, default=None))
    return max((n for n in common if length is None or n <= length), default=min(common, default=None))


def _times(ratio: float | None, what: str) -> str:
    if ratio is None or 1 / _SAME < ratio < _SAME:
        return f"the same {what}"
    if ratio < 0.1:
        return f"1/{1 / ratio:,.0f} of the {what}"
    return f"{ratio:.2g}x the {what}" if ratio < 100 else f"{ratio:,.0f}x the {what}"
