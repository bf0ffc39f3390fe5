"""Everything that the fuzzer calls, with how often."""

from __future__ import annotations

import random
from dataclasses import replace

from tests.fuzz.calls import Call
from tests.fuzz.helpers import draw_helper
from tests.fuzz.layers import draw_layer
from tests.fuzz.operators import OPERATORS, draw_operator
from tests.fuzz.readings import READINGS
from tests.fuzz.sizes import SIZES
from tests.fuzz.transfers import TRANSFERS

__all__ = ["ROWS", "draw"]

ROWS = {**TRANSFERS, **SIZES, **READINGS}


def draw(rng: random.Random) -> Call:
    """A legal call of anything."""
    kind = rng.choices(["operator", "reference", "layer", "helper", "row"], [35, 12, 20, 13, 20])[0]
    if kind == "row":
        title = rng.choices(list(ROWS), [one.weight for one in ROWS.values()])[0]
        return replace(ROWS[title].draw(rng), title=title)
    if kind == "layer":
        return draw_layer(rng)
    if kind == "helper":
        return draw_helper(rng)
    return draw_operator(rng, rng.choice(list(OPERATORS)), of_reference=kind == "reference")
