"""`kernel_attention_step` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, normal, register
from tests.ops.contract.inputs import decays, gates, one_token

from attensor import ops

NORMALISED = {"feature_map": "elu+1", "denominator": ops.Denominator()}


def summed() -> dict:
    """A token and states with a column for the sum of the keys."""
    return {**one_token(), "state": normal(2, 4, 3, 6, seed=5).abs()}


register(
    Contract(
        "kernel_attention_step",
        ops.kernel_attention_step,
        ops.kernel_attention_step_reference,
        {
            "normalised": lambda: Inputs({**summed(), "log_decay": decays(2, 4)}, NORMALISED),
            "features": lambda: Inputs(one_token(), {"feature_map": "silu"}),
            "gates": lambda: Inputs({**summed(), "log_decay": gates(2, 4)}, NORMALISED),
        },
        batch={"q": 0, "k": 0, "v": 0, "log_decay": 0, "state": 0},
        flops=lambda x, form: (4 * x.tensors["q"].numel() * x.tensors["state"].shape[-1], None),
    )
)
