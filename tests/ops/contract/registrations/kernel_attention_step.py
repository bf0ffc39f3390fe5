"""`kernel_attention_step` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, normal, register
from tests.ops.contract.inputs import decays, one_token

from attensor import ops

register(
    Contract(
        "kernel_attention_step",
        ops.kernel_attention_step,
        ops.kernel_attention_step_reference,
        {
            "normalised": lambda: Inputs(
                {**one_token(), "state": normal(2, 4, 3, 6, seed=5).abs(), "log_decay": decays(2, 4)},
                {"feature_map": "elu+1", "denominator": ops.Denominator()},
            ),
            "features": lambda: Inputs(one_token(), {"feature_map": "silu"}),
        },
        batch={"q": 0, "k": 0, "v": 0, "log_decay": 0, "state": 0},
    )
)
