"""Everything that the fuzzer calls, with how often."""

from __future__ import annotations

import random

from tests.fuzz.calls import Call
from tests.fuzz.helpers import draw_helper
from tests.fuzz.layers import draw_layer
from tests.fuzz.operators import OPERATORS, draw_operator

__all__ = ["draw"]


def draw(rng: random.Random) -> Call:
    """A legal call of anything."""
    kind = rng.choices(["operator", "reference", "layer", "helper"], [45, 15, 25, 15])[0]
    if kind == "layer":
        return draw_layer(rng)
    if kind == "helper":
        return draw_helper(rng)
    return draw_operator(rng, rng.choice(list(OPERATORS)), of_reference=kind == "reference")
