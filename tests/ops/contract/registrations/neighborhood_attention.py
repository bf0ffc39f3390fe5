"""`neighborhood_attention` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, normal, register
from tests.ops.contract.inputs import grid, qkv

from attensor import ops

register(
    Contract(
        "neighborhood_attention",
        ops.neighborhood_attention,
        ops.neighborhood_attention_reference,
        {
            "grid": lambda: Inputs(grid(), {"window_size": 3}),
            "bias with lse": lambda: Inputs(
                {**grid(), "relative_bias": normal(4, 5, 5)},
                {"window_size": 3, "dilation": (2, 1), "return_lse": True},
            ),
            "additional": lambda: Inputs(
                {**qkv(), "additional_keys": normal(2, 2, 2, 3), "additional_values": normal(2, 2, 2, 5)},
                {"window_size": 4, "stride": 2},
            ),
            "causal": lambda: Inputs(qkv(tokens=13), {"window_size": 4, "is_causal": True, "return_lse": True}),
        },
        batch={"q": 0, "k": 0, "v": 0, "additional_keys": 0, "additional_values": 0},
    )
)
