"""`linear_attention` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, normal, register
from tests.ops.contract.inputs import decays, qkv

from attensor import ops

LINEAR = {
    "plain": lambda: Inputs(
        {**qkv(), "log_decay": decays(2, 7, 4), "initial_state": normal(2, 4, 3, 5, seed=5)},
        {"output_final_state": True},
    ),
    "constant": lambda: Inputs({**qkv(), "log_decay": decays(4)}, {"scale": 0.7, "chunk_size": 4}),
    "channel": lambda: Inputs(
        {**qkv(tokens=35), "log_decay": decays(2, 35, 2, 3)}, {"output_final_state": True, "chunk_size": 16}
    ),
    "none": lambda: Inputs({**qkv(tokens=19), "initial_state": normal(2, 4, 3, 5, seed=5)}, {"chunk_size": 8}),
    "both ways": lambda: Inputs(qkv(), {"is_causal": False, "output_final_state": True}),
    "no tokens": lambda: Inputs({**qkv(tokens=0), "initial_state": normal(2, 4, 3, 5)}, {"output_final_state": True}),
}


register(
    Contract(
        "linear_attention",
        ops.linear_attention,
        ops.linear_attention_reference,
        LINEAR,
        batch={"q": 0, "k": 0, "v": 0, "log_decay": 0, "initial_state": 0},
        tokens={"q": 1, "k": 1, "v": 1, "log_decay": 1},
        per_sequence=("initial_state",),
        flops=lambda x: 2 * 7 * 4 * 4 * 3 * 5,
    )
)
