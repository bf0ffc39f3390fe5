"""`kernel_attention` and its cases."""

from __future__ import annotations

import torch
from tests.ops.contract.contract import Contract, Inputs, normal, register
from tests.ops.contract.inputs import decays, gates, packed, qkv
from torch import Tensor

from attensor import ops

ELU = {"feature_map": "elu+1", "denominator": ops.Denominator()}


def turned(x: Tensor) -> Tensor:
    """Features with signs by their channel."""
    return x * torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)


def operations(inputs: Inputs, form: str) -> tuple[int, None] | None:
    """A state is written and read for each token; features are functions of torch, without products."""
    if "position_map" in inputs.options or not inputs.options.get("is_causal", True):
        return None
    columns = inputs.tensors["v"].shape[-1] + ("denominator" in inputs.options)
    return 4 * inputs.tensors["q"].numel() * columns, None


register(
    Contract(
        "kernel_attention",
        ops.kernel_attention,
        ops.kernel_attention_reference,
        {
            "normalised": lambda: Inputs({**qkv(), "log_decay": decays(2, 7, 4)}, {**ELU, "output_final_state": True}),
            "features": lambda: Inputs(qkv(), {"feature_map": "relu", "is_causal": False}),
            "positions": lambda: Inputs(qkv(), {**ELU, "position_map": turned}),
            "going on": lambda: Inputs(
                {**qkv(), "log_decay": decays(4), "initial_state": normal(2, 4, 3, 6, seed=5).abs()},
                {**ELU, "output_final_state": True},
            ),
            "both ways": lambda: Inputs(qkv(), {**ELU, "is_causal": False, "output_final_state": True}),
            "gates": lambda: Inputs({**qkv(), "log_decay": gates(2, 7, 4)}, ELU),
            "one token": lambda: Inputs(qkv(tokens=1), {**ELU, "output_final_state": True}),
            "packed": lambda: Inputs({**packed(0, 3, 3, 7), "log_decay": decays(4)}, ELU),
        },
        batch={"q": 0, "k": 0, "v": 0, "log_decay": 0, "initial_state": 0},
        tokens={"q": 1, "k": 1, "v": 1, "log_decay": 1},
        per_sequence=("initial_state",),
        state="initial_state",
        whole=("positions", "packed"),
        causal={"normalised": 0, "gates": 0},
        flops=operations,
    )
)
