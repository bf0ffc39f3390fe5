"""`block_attention` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, normal, register
from tests.ops.contract.inputs import grid

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
        },
        batch={"q": 0, "k": 0, "v": 0},
    )
)
