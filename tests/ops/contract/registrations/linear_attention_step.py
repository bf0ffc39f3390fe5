"""`linear_attention_step` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, register
from tests.ops.contract.inputs import decays, gates, one_token

from attensor import ops

register(
    Contract(
        "linear_attention_step",
        ops.linear_attention_step,
        ops.linear_attention_step_reference,
        {
            "token": lambda: Inputs({**one_token(), "log_decay": decays(2, 4)}),
            "none": lambda: Inputs(one_token(), {"scale": 0.7}),
            "constant": lambda: Inputs({**one_token(), "log_decay": decays(4)}),
            "channel": lambda: Inputs({**one_token(), "log_decay": decays(2, 2, 3)}),
            "gates": lambda: Inputs({**one_token(), "log_decay": gates(2, 4)}),
            "constant gates": lambda: Inputs({**one_token(), "log_decay": gates(4)}),
        },
        batch={"q": 0, "k": 0, "v": 0, "log_decay": 0, "state": 0},
        flops=lambda x, form: (4 * x.tensors["q"].numel() * x.tensors["v"].shape[-1], None),
    )
)
