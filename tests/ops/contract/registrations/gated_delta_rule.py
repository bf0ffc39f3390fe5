"""`gated_delta_rule` and its cases."""

from __future__ import annotations

import torch
from tests.ops.contract.contract import Contract, Inputs, normal, register
from tests.ops.contract.inputs import decays, gates, packed, qkv
from torch import Tensor

from attensor import ops

FINAL = {"output_final_state": True}


def short_keys(tensors: dict[str, Tensor], heads: int = 4) -> dict[str, Tensor]:
    """Keys of length 1, and how far to correct."""
    rows, tokens = tensors["q"].shape[:2]
    keys = torch.nn.functional.normalize(tensors["k"], dim=-1)
    return {**tensors, "k": keys, "beta": normal(rows, tokens, heads, seed=6).sigmoid()}


def start(rows: int = 2) -> dict[str, Tensor]:
    return {"initial_state": normal(rows, 4, 3, 5, seed=5)}


def operations(inputs: Inputs, form: str) -> tuple[int, int] | None:
    """A state read by a key, written and read by a query, for each token and head; twice so backward.

    One token is computed by operations of torch, which counts its own products.
    """
    if inputs.tensors["q"].shape[1] == 1:
        return None
    count = 6 * inputs.tensors["q"].numel() * inputs.tensors["v"].shape[-1]
    return count, 2 * count


register(
    Contract(
        "gated_delta_rule",
        ops.gated_delta_rule,
        ops.gated_delta_rule_reference,
        {
            "plain": lambda: Inputs({**short_keys(qkv()), "log_decay": decays(2, 7, 4), **start()}, FINAL),
            "no gate": lambda: Inputs({**short_keys(qkv(tokens=19), 2), **start()}, {"scale": 0.7, "chunk_size": 8}),
            "chunks": lambda: Inputs(
                {**short_keys(qkv(tokens=19)), "log_decay": decays(2, 19, 2)}, {**FINAL, "chunk_size": 8}
            ),
            "gates": lambda: Inputs(
                {**short_keys(qkv(tokens=19)), "log_decay": gates(2, 19, 4), **start()}, {**FINAL, "chunk_size": 8}
            ),
            "one token": lambda: Inputs({**short_keys(qkv(tokens=1)), "log_decay": decays(2, 1, 4), **start()}, FINAL),
            "no tokens": lambda: Inputs({**short_keys(qkv(tokens=0)), **start()}, FINAL),
            "packed": lambda: Inputs(
                {**short_keys(packed(0, 0, 7, 12, 19)), "log_decay": decays(1, 19, 4), **start(4)},
                {**FINAL, "chunk_size": 4},
            ),
            "packed without tokens": lambda: Inputs({**short_keys(packed(0, 0, 0)), **start(2)}, FINAL),
        },
        batch={"q": 0, "k": 0, "v": 0, "beta": 0, "log_decay": 0, "initial_state": 0},
        tokens={"q": 1, "k": 1, "v": 1, "beta": 1, "log_decay": 1},
        per_sequence=("initial_state",),
        state="initial_state",
        bounded=("k", "beta"),
        flops=operations,
        whole=("no tokens", "packed", "packed without tokens"),
        causal={"plain": 0, "no gate": 0, "chunks": 0, "gates": 0},
    )
)
