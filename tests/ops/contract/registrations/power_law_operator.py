"""`power_law_operator` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, normal, register
from torch import Tensor

from attensor import ops


def tensors(*leading: int, heads: int = 3, width: int = 5) -> dict[str, Tensor]:
    """Entries of W A + b away from zero, where a power of a negative exponent has no bound."""
    square = (heads, width, width)
    return {
        "a": normal(*leading, *square),
        "weight": normal(*square, seed=1) / 8,
        "bias": 2 + normal(*square, seed=2).abs(),
        "exponent": normal(*square, seed=3) / 4,
        "mix": normal(*square, seed=4),
        "mix_bias": normal(*square, seed=5),
    }


register(
    Contract(
        "power_law_operator",
        ops.power_law_operator,
        ops.power_law_operator_reference,
        {
            "a batch": lambda: Inputs(tensors(2), {}),
            "batch and blocks": lambda: Inputs(tensors(2, 4), {}),
            "one head of one": lambda: Inputs(tensors(2, heads=1, width=1), {}),
            "no batch": lambda: Inputs(tensors(), {}),
        },
        dtype_of="a",
        bounded=("exponent",),
    )
)
