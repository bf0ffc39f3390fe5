"""Inputs of several operators. Sizes are unequal, so that no exchange of dimensions goes unseen."""

from __future__ import annotations

from tests.ops.contract.contract import normal
from torch import Tensor

# changes of a tensor that are legal
ALLOWED = {
    "of another size": {"v", "x", "coefficients", "relative_bias of relative_kernel_attention"},
    "of another rank": {"x", "coefficients", "attn_mask"},
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


def one_token(heads: int = 4, kv_heads: int = 2) -> dict[str, Tensor]:
    return {**{name: x[:, 0] for name, x in qkv(tokens=1).items()}, "state": normal(2, 4, 3, 5, seed=5)}


def grid() -> dict[str, Tensor]:
    """q, k, v on a grid of 6 x 5."""
    return {name: x.unflatten(1, (6, 5)) for name, x in qkv(tokens=30).items()}
