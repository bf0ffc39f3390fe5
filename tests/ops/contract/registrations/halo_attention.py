"""`halo_attention` and its cases."""

from __future__ import annotations

from typing import Any

from tests.ops.contract.contract import Contract, Inputs, normal, register

from attensor import ops


def case(rows: int = 6, columns: int = 5, stride: int = 1, *, tables: bool = True, **options: Any) -> Inputs:
    """q, k, v of grouped heads on a map, blocks of 4 in windows of 6 cells."""
    small = [-(-side // stride) for side in (rows, columns)]
    tensors = {
        "q": normal(2, *small, 4, 3),
        "k": normal(2, rows, columns, 2, 3, seed=1),
        "v": normal(2, rows, columns, 2, 5, seed=2),
    }
    if tables:
        tensors["relative_embedding"] = normal(2, 11, 3, seed=3)
    return Inputs(tensors, {"block_size": 4, "halo_size": 1, "query_stride": stride, **options})


register(
    Contract(
        "halo_attention",
        ops.halo_attention,
        ops.halo_attention_reference,
        {
            "padded blocks": lambda: case(),
            "without positions": lambda: case(tables=False),
            "zeros around": lambda: case(border="zero"),
            "strided": lambda: case(8, 7, 2),
            "strided as timm": lambda: case(8, 4, 2, legacy_offsets=True, border="zero"),
            "one cell": lambda: case(1, 1),
        },
        batch={"q": 0, "k": 0, "v": 0},
    )
)
