"""`kernel_attention` and its cases."""

from __future__ import annotations

import torch
from tests.ops.contract.contract import Contract, Inputs, register
from tests.ops.contract.inputs import decays, qkv
from torch import Tensor

from attensor import ops


def turned(x: Tensor) -> Tensor:
    """Features with signs by their channel."""
    return x * torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)


register(
    Contract(
        "kernel_attention",
        ops.kernel_attention,
        ops.kernel_attention_reference,
        {
            "normalised": lambda: Inputs(
                {**qkv(), "log_decay": decays(2, 7, 4)},
                {"feature_map": "elu+1", "denominator": ops.Denominator(), "output_final_state": True},
            ),
            "features": lambda: Inputs(qkv(), {"feature_map": "relu", "is_causal": False}),
            "positions": lambda: Inputs(
                qkv(), {"feature_map": "elu+1", "denominator": ops.Denominator(), "position_map": turned}
            ),
        },
        batch={"q": 0, "k": 0, "v": 0, "log_decay": 0},
        tokens={"q": 1, "k": 1, "v": 1, "log_decay": 1},
        per_sequence=("initial_state",),
    )
)
