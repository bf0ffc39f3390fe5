"""`softmax_attention` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, normal, register
from tests.ops.contract.inputs import fused, packed, qkv
from torch import Tensor

from attensor import ops

LSE = {"return_lse": True}


def softmax_mask() -> Tensor:
    mask = normal(2, 4, 7, 7, seed=3)
    mask[:, :, 2] = float("-inf")  # a row that sees nothing
    return mask


def operations(inputs: Inputs, form: str) -> tuple[int, int | None]:
    """All pairs of a sequence, whatever the mask, as torch counts its own attention."""
    q, k, v = (inputs.tensors[name] for name in "qkv")
    forward, backward = fused(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[1], inputs)
    # without values nothing is multiplied back, and the gradient of a mask takes all scores
    return forward, backward if v.numel() and "attn_mask" not in inputs.floats else None


register(
    Contract(
        "softmax_attention",
        ops.softmax_attention,
        ops.softmax_attention_reference,
        {
            "plain": lambda: Inputs(qkv()),
            "causal with lse": lambda: Inputs(qkv(), {"is_causal": True, **LSE, "scale": 0.7}),
            "mask with lse": lambda: Inputs({**qkv(), "attn_mask": softmax_mask()}, LSE),
            "closed rows": lambda: Inputs({**qkv(), "attn_mask": softmax_mask() > -0.3}, LSE),
            "mask of keys": lambda: Inputs({**qkv(), "attn_mask": normal(2, 1, 1, 7, seed=3)}, {"is_causal": True}),
            "mask of all rows": lambda: Inputs({**qkv(), "attn_mask": normal(7, seed=3)}, LSE),
            "one query": lambda: Inputs({**qkv(), "q": normal(2, 1, 4, 3)}, {"is_causal": True, **LSE}),
            "few queries": lambda: Inputs({**qkv(heads=8), "q": normal(2, 2, 8, 3)}, {"is_causal": True}),
            "many queries": lambda: Inputs({**qkv(), "q": normal(2, 11, 4, 3)}, {"is_causal": True, **LSE}),
            "one token": lambda: Inputs(qkv(tokens=1), LSE),
            "negative scale": lambda: Inputs(qkv(), {"is_causal": True, **LSE, "scale": -0.7}),
            "scale of zero": lambda: Inputs(qkv(), {"is_causal": True, **LSE, "scale": 0.0}),
            "no queries": lambda: Inputs({**qkv(), "q": normal(2, 0, 4, 3)}, LSE),
            "no tokens": lambda: Inputs(qkv(tokens=0), LSE),
            "no keys": lambda: Inputs({**qkv(tokens=0), "q": normal(2, 3, 4, 3)}, LSE),
            "no channels": lambda: Inputs(qkv(keys=0, values=2), LSE),
            "no values": lambda: Inputs(qkv(values=0), LSE),
            "packed": lambda: Inputs(packed(0, 1, 1, 6, 11), {"is_causal": True, **LSE}),
        },
        batch={"q": 0, "k": 0, "v": 0, "attn_mask": 0},
        tokens={"q": 1, "k": 1, "v": 1},
        whole=(
            *("mask with lse", "closed rows", "mask of keys", "mask of all rows", "one query"),
            *("few queries", "many queries", "no queries", "no tokens", "no keys", "packed"),
        ),
        causal={"causal with lse": 0},
        flops=operations,
    )
)
