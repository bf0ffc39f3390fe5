"""`toeplitz` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, normal, register

from attensor import ops

register(
    Contract(
        "toeplitz",
        ops.toeplitz,
        ops.toeplitz_reference,
        {
            "line": lambda: Inputs({"coefficients": normal(3, 11), "x": normal(2, 3, 5)}),
            "causal": lambda: Inputs({"coefficients": normal(9), "x": normal(2, 5)}, {"is_causal": True}),
            "grid": lambda: Inputs({"coefficients": normal(5, 9), "x": normal(2, 3, 4)}, {"space_dims": 2}),
            "many outputs": lambda: Inputs({"coefficients": normal(3, 27), "x": normal(2, 1, 17)}),
            "one number": lambda: Inputs({"coefficients": normal(1), "x": normal(2, 1)}),
            "one output": lambda: Inputs({"coefficients": normal(11), "x": normal(3, 11)}),
        },
        dtype_of="x",
    )
)
