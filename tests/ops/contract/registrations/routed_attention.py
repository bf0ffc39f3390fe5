"""`routed_attention` and its cases: gates that are bool are the ones with zeros, at which a gate has no derivative."""

from __future__ import annotations

import torch
from tests.ops.contract.contract import Contract, Inputs, normal, register
from tests.ops.contract.inputs import packed, qkv
from torch import Tensor

from attensor import ops

GATHERED, DENSE = {"form": "gathered"}, {"form": "dense"}


def soft(batch: int = 2, queries: int = 7) -> Tensor:
    return normal(batch, queries, 4, seed=8).abs() + 0.2


def hard(batch: int = 2, queries: int = 7) -> Tensor:
    """The first two heads are asked by all, the others by some, one of them by none of the first sequence."""
    found = normal(batch, queries, 4, seed=9) > 0.2
    found[..., :2] = True
    found[0, :, 3] = False
    return found


def with_gates(gates: Tensor, **more: Tensor) -> dict[str, Tensor]:
    return {**qkv(), **more, "gates": gates}


def mask() -> Tensor:
    found = normal(2, 4, 7, 7, seed=3)
    found[:, :, 2] = float("-inf")  # a row that sees nothing
    return found


def one_query(gates: Tensor) -> dict[str, Tensor]:
    return {**qkv(), "q": normal(2, 1, 4, 3), "gates": gates}


def in_one_row() -> dict[str, Tensor]:
    return {**packed(0, 1, 1, 6, 11), "gates": hard(1, 11)}


register(
    Contract(
        "routed_attention",
        ops.routed_attention,
        ops.routed_attention_reference,
        {
            "soft": lambda: Inputs(with_gates(soft()), DENSE),
            "soft, gathered": lambda: Inputs(with_gates(soft()), {"is_causal": True, **GATHERED, "scale": 0.7}),
            "causal": lambda: Inputs(with_gates(soft()), {"is_causal": True}),
            "hard": lambda: Inputs(with_gates(hard()), GATHERED),
            "hard, causal": lambda: Inputs(with_gates(hard()), {"is_causal": True, **GATHERED}),
            "hard, dense": lambda: Inputs(with_gates(hard()), {"is_causal": True, **DENSE}),
            "mask": lambda: Inputs(with_gates(hard(), attn_mask=mask()), {"is_causal": True, **GATHERED}),
            "closed": lambda: Inputs(with_gates(hard(), attn_mask=mask() > -0.3), {"is_causal": True, **GATHERED}),
            "mask of keys": lambda: Inputs(with_gates(hard(), attn_mask=normal(2, 1, 1, 7, seed=3)), GATHERED),
            "one query": lambda: Inputs(one_query(hard(queries=1)), {"is_causal": True, **GATHERED}),
            "nobody": lambda: Inputs(with_gates(torch.zeros(2, 7, 4, dtype=torch.bool)), GATHERED),
            "no tokens": lambda: Inputs({**qkv(tokens=0), "gates": hard(queries=0)}, GATHERED),
            "packed": lambda: Inputs(in_one_row(), {"is_causal": True, **GATHERED}),
        },
        batch={"q": 0, "k": 0, "v": 0, "gates": 0, "attn_mask": 0},
        tokens={"q": 1, "k": 1, "v": 1, "gates": 1},
        whole=("mask", "closed", "mask of keys", "one query", "nobody", "no tokens", "packed"),
        causal={"causal": 0},
        dtype_of="q",
    )
)
