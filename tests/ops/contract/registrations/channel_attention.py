"""`channel_attention` and its cases."""

from __future__ import annotations

from math import prod

from tests.ops.contract.contract import Contract, Inputs, register
from tests.ops.contract.inputs import qkv
from torch import Tensor

from attensor import ops


def on(*space: int) -> dict[str, Tensor]:
    """q, k, v of equal sizes on a grid."""
    return {name: x.unflatten(1, space) for name, x in qkv(tokens=prod(space), kv_heads=4, values=3).items()}


register(
    Contract(
        "channel_attention",
        ops.channel_attention,
        ops.channel_attention_reference,
        {
            "grid": lambda: Inputs(on(6, 5), {}),
            "line": lambda: Inputs(on(7), {}),
            "scaled by the cells": lambda: Inputs(on(6, 5), {"scale": 20**-0.5}),
            "three axes": lambda: Inputs(on(3, 2, 5), {}),
            "one token": lambda: Inputs(on(1), {}),
        },
        batch={"q": 0, "k": 0, "v": 0},
    )
)
