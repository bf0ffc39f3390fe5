"""Inputs of several operators. Sizes are unequal, so that no exchange of dimensions goes unseen."""

from __future__ import annotations

import torch
from tests.ops.contract.contract import Inputs, normal
from torch import Tensor

# changes of a tensor that are legal
ALLOWED = {
    "of another size": {
        "v",
        "x",
        "coefficients",
        "relative_bias of relative_kernel_attention",
        "cu_seqlens",
        "first outs of one",
    },
    "of another rank": {"x", "coefficients", "attn_mask", "a of power_law_operator"},
}


def qkv(batch: int = 2, tokens: int = 7, heads: int = 4, kv_heads: int = 2, keys: int = 3, values: int = 5):
    """q, k, v of grouped heads."""
    return {
        "q": normal(batch, tokens, heads, keys),
        "k": normal(batch, tokens, kv_heads, keys, seed=1),
        "v": normal(batch, tokens, kv_heads, values, seed=2),
    }


def decays(*shape: int) -> Tensor:
    return -normal(*shape, seed=4).abs()


def gates(*shape: int) -> Tensor:
    """Decays of which every third is extreme: it keeps all, hardly anything, or nothing."""
    found = decays(*shape).flatten()
    for start, extreme in ((0, 0.0), (3, -float("inf")), (6, -100.0), (9, -1e4)):
        found[start::12] = extreme
    return found.view(shape)


def one_token(heads: int = 4, kv_heads: int = 2) -> dict[str, Tensor]:
    return {**{name: x[:, 0] for name, x in qkv(tokens=1).items()}, "state": normal(2, 4, 3, 5, seed=5)}


def grid() -> dict[str, Tensor]:
    """q, k, v on a grid of 6 x 5."""
    return {name: x.unflatten(1, (6, 5)) for name, x in qkv(tokens=30).items()}


def packed(*bounds: int) -> dict[str, Tensor]:
    """Sequences in one row, from one bound to the next."""
    return {**qkv(batch=1, tokens=bounds[-1]), "cu_seqlens": torch.tensor(bounds)}


def fused(pairs: int, inputs: Inputs, columns: int = 0) -> tuple[int, int]:
    """Operations of scores and weighted values; backward of the scores again and all gradients."""
    key_dim, value_dim = inputs.tensors["q"].shape[-1], inputs.tensors["v"].shape[-1]
    return 2 * pairs * (key_dim + value_dim + columns), 2 * pairs * (3 * key_dim + 2 * value_dim + columns)
