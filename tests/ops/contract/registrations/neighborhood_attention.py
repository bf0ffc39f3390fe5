"""`neighborhood_attention` and its cases."""

from __future__ import annotations

import torch
from tests.ops.contract.contract import Case, Contract, Inputs, normal, register
from tests.ops.contract.inputs import fused, grid, packed, qkv
from torch import Tensor

from attensor import ops


def additional() -> dict[str, Tensor]:
    return {"additional_keys": normal(2, 2, 2, 3), "additional_values": normal(2, 2, 2, 5)}


def operations(inputs: Inputs, form: str) -> tuple[int, int]:
    """Of the pairs that are seen, whatever the tiles: weights are what comes out for unit vectors as values."""
    v, extra = inputs.tensors["v"], inputs.tensors.get("additional_values")
    own = v[0, ..., 0, 0].numel()
    unit = torch.eye(own + (0 if extra is None else extra.shape[1]), dtype=v.dtype).unsqueeze(1)
    values = unit[:own].view(*v.shape[1:-2], 1, -1).expand(*v.shape[:-1], -1)
    more = {} if extra is None else {"additional_values": unit[own:].expand(*extra.shape[:-1], -1)}
    weights = ops.neighborhood_attention_reference(
        **{**inputs.tensors, "v": values, **more}, **{**inputs.options, "return_lse": False}
    )
    return fused(int(weights.count_nonzero()), inputs)


CASES: dict[str, Case] = {
    "grid": lambda: Inputs(grid(), {"window_size": 3}),
    "bias with lse": lambda: Inputs(
        {**grid(), "relative_bias": normal(4, 5, 5)},
        {"window_size": 3, "dilation": (2, 1), "return_lse": True},
    ),
    "additional": lambda: Inputs({**qkv(), **additional()}, {"window_size": 4, "stride": 2}),
    "everything": lambda: Inputs(
        {**grid(), "relative_bias": normal(4, 3, 5), **additional()},
        {"window_size": (2, 3), "dilation": (2, 1), "is_causal": (False, True), "return_lse": True},
    ),
    "truncated": lambda: Inputs(
        {**grid(), "relative_bias": normal(4, 13, 5)},
        {"window_size": (7, 3), "stride": (1, 2), "border": "truncate", "return_lse": True},
    ),
    "causal": lambda: Inputs(qkv(tokens=13), {"window_size": 4, "is_causal": True, "return_lse": True}),
    "causal over tiles": lambda: Inputs(qkv(tokens=71, heads=2), {"window_size": 20, "is_causal": True}),
    "one token": lambda: Inputs(qkv(tokens=1), {"window_size": 1, "return_lse": True}),
    "packed": lambda: Inputs(packed(0, 1, 3, 11), {"window_size": 4, "is_causal": True, "return_lse": True}),
}

register(
    Contract(
        "neighborhood_attention",
        ops.neighborhood_attention,
        ops.neighborhood_attention_reference,
        CASES,
        batch={"q": 0, "k": 0, "v": 0, "additional_keys": 0, "additional_values": 0},
        tokens={"q": 1, "k": 1, "v": 1},
        whole=tuple(CASES),  # a window must fit the shortest sequence
        causal={"causal": 0, "causal over tiles": 0},
        flops=lambda x, form: None if "cu_seqlens" in x.tensors else operations(x, form),
    )
)
