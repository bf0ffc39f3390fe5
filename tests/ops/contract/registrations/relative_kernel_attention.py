"""`relative_kernel_attention` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, normal, register
from tests.ops.contract.inputs import qkv
from torch import Tensor

from attensor import ops


def features() -> dict[str, Tensor]:
    """q, k, v of features, which are not negative."""
    return {name: x if name == "v" else x.abs() for name, x in qkv().items()}


register(
    Contract(
        "relative_kernel_attention",
        ops.relative_kernel_attention,
        ops.relative_kernel_attention_reference,
        {
            f"{algorithm}{' causal' * is_causal}": lambda algorithm=algorithm, is_causal=is_causal: Inputs(
                {**features(), "relative_bias": normal(4, 9)}, {"algorithm": algorithm, "is_causal": is_causal}
            )
            for algorithm in ("tiles", "fft")
            for is_causal in (False, True)
        }
        | {
            "masked": lambda: Inputs(
                {**features(), "relative_bias": normal(4, 9), "key_mask": normal(2, 7) > -0.5},
                {"feature_map": "elu+1"},
            )
        },
        batch={"q": 0, "k": 0, "v": 0, "key_mask": 0},
        tokens={"q": 1, "k": 1, "v": 1},
        half_error=5e-2,
    )
)
