"""`softmax_attention` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, normal, register
from tests.ops.contract.inputs import qkv
from torch import Tensor

from attensor import ops


def softmax_mask() -> Tensor:
    mask = normal(2, 4, 7, 7, seed=3)
    mask[:, :, 2] = float("-inf")  # a row that sees nothing
    return mask


register(
    Contract(
        "softmax_attention",
        ops.softmax_attention,
        ops.softmax_attention_reference,
        {
            "plain": lambda: Inputs(qkv()),
            "causal with lse": lambda: Inputs(qkv(), {"is_causal": True, "return_lse": True, "scale": 0.7}),
            "mask with lse": lambda: Inputs({**qkv(), "attn_mask": softmax_mask()}, {"return_lse": True}),
            "few queries": lambda: Inputs({**qkv(heads=8), "q": normal(2, 2, 8, 3)}, {"is_causal": True}),
            "no tokens": lambda: Inputs(qkv(tokens=0), {"return_lse": True}),
        },
        batch={"q": 0, "k": 0, "v": 0},
        tokens={"q": 1, "k": 1, "v": 1},
        flops=lambda x: 2 * 2 * 4 * 7 * 7 * (3 + 5),
    )
)
