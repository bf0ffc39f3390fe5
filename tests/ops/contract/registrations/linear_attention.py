"""`linear_attention` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, normal, register
from tests.ops.contract.inputs import decays, gates, packed, qkv
from torch import Tensor

from attensor import ops

FINAL = {"output_final_state": True}


def start(rows: int = 2) -> dict[str, Tensor]:
    return {"initial_state": normal(rows, 4, 3, 5, seed=5)}


def operations(inputs: Inputs, form: str) -> tuple[int, int] | None:
    """A state is written and read for each token, and twice so backward; both ways it is products of torch."""
    count = 4 * inputs.tensors["q"].numel() * inputs.tensors["v"].shape[-1]
    return (count, 2 * count) if inputs.options.get("is_causal", True) else None


register(
    Contract(
        "linear_attention",
        ops.linear_attention,
        ops.linear_attention_reference,
        {
            "plain": lambda: Inputs({**qkv(), "log_decay": decays(2, 7, 4), **start()}, FINAL),
            "constant": lambda: Inputs({**qkv(), "log_decay": decays(4)}, {"scale": 0.7, "chunk_size": 4}),
            "constant, going on": lambda: Inputs(
                {**qkv(tokens=19), "log_decay": decays(2), **start()}, {**FINAL, "chunk_size": 8}
            ),
            "channel": lambda: Inputs(
                {**qkv(tokens=35), "log_decay": decays(2, 35, 2, 3)}, {**FINAL, "chunk_size": 16}
            ),
            "none": lambda: Inputs({**qkv(tokens=19), **start()}, {"chunk_size": 8}),
            "gates": lambda: Inputs({**qkv(tokens=19), "log_decay": gates(2, 19, 4), **start()}, {"chunk_size": 8}),
            "gates of channels": lambda: Inputs(
                {**qkv(tokens=19), "log_decay": gates(2, 19, 2, 3)}, {**FINAL, "chunk_size": 8}
            ),
            "both ways": lambda: Inputs({**qkv(), **start()}, {"is_causal": False, **FINAL}),
            "one token": lambda: Inputs({**qkv(tokens=1), "log_decay": decays(2, 1, 4), **start()}, FINAL),
            "no tokens": lambda: Inputs({**qkv(tokens=0), **start()}, FINAL),
            "scale of zero": lambda: Inputs({**qkv(), "log_decay": decays(2, 7, 2)}, {**FINAL, "scale": 0.0}),
            "packed": lambda: Inputs(
                {**packed(0, 0, 7, 12, 19), "log_decay": decays(1, 19, 4), **start(4)}, {**FINAL, "chunk_size": 4}
            ),
            "packed channels": lambda: Inputs(
                {**packed(0, 5, 14, 19), "log_decay": decays(1, 19, 2, 3), **start(3)}, {**FINAL, "chunk_size": 4}
            ),
            "packed without tokens": lambda: Inputs({**packed(0, 0, 0), **start(2)}, FINAL),
            "packed constant": lambda: Inputs({**packed(0, 2, 11), "log_decay": decays(4)}, {"chunk_size": 4}),
        },
        batch={"q": 0, "k": 0, "v": 0, "log_decay": 0, "initial_state": 0},
        tokens={"q": 1, "k": 1, "v": 1, "log_decay": 1},
        per_sequence=("initial_state",),
        state="initial_state",
        whole=(
            "decays of all rows",
            "no tokens",
            "packed",
            "packed channels",
            "packed without tokens",
            "packed constant",
        ),
        causal={"plain": 0, "channel": 0, "none": 0, "gates": 0},
        flops=operations,
    )
)
