"""`block_attention` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, normal, register
from tests.ops.contract.inputs import grid, qkv

from attensor import ops

register(
    Contract(
        "block_attention",
        ops.block_attention,
        ops.block_attention_reference,
        {
            "window": lambda: Inputs(grid(), {"pattern": "window", "block_size": (3, 2)}),
            "grid with bias": lambda: Inputs(
                {**grid(), "attn_mask": normal(4, 6, 6)}, {"pattern": "grid", "block_size": (3, 2)}
            ),
            "causal axis": lambda: Inputs(grid(), {"pattern": "axial", "axis": 0, "is_causal": True}),
            "axis with mask": lambda: Inputs(
                {**grid(), "attn_mask": normal(4, 5, 5) > -0.4}, {"pattern": "axial", "axis": -1}
            ),
            "grid of a line": lambda: Inputs(qkv(), {"pattern": "grid", "block_size": 3}),
            "window beyond the grid": lambda: Inputs(
                {name: x.unflatten(1, (2, 3)) for name, x in qkv(tokens=6).items()},
                {"pattern": "window", "block_size": (5, 3)},
            ),
            "three axes": lambda: Inputs(
                {name: x.unflatten(1, (3, 2, 5)) for name, x in qkv(tokens=30).items()},
                {"pattern": "window", "block_size": 2},
            ),
            "one token": lambda: Inputs(qkv(tokens=1), {"pattern": "window", "block_size": 1}),
        },
        batch={"q": 0, "k": 0, "v": 0},
    )
)
