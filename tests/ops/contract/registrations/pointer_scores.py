"""`pointer_scores` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, normal, register
from torch import Tensor

from attensor import ops

BILINEAR = {"kind": "bilinear"}


def tensors(batch: int = 2, queries: int = 5, keys: int = 7, channels: int = 3, **weight: Tensor) -> dict[str, Tensor]:
    return {"queries": normal(batch, queries, channels), "keys": normal(batch, keys, channels, seed=1), **weight}


def between(queries: int) -> dict[str, Tensor]:
    """Queries of 3 channels and keys of 4."""
    found = tensors(queries=queries)
    return {**found, "keys": normal(2, 7, 4, seed=1), "weight": normal(3, 4, seed=2)}


def flops(inputs: Inputs, form: str) -> tuple[int, int | None] | None:
    if form == "reference" or inputs.options.get("kind") == "bilinear":
        return None
    batch, queries, channels = inputs.tensors["queries"].shape
    forward = 2 * batch * queries * inputs.tensors["keys"].shape[1] * channels
    return forward, 3 * forward


register(
    Contract(
        "pointer_scores",
        ops.pointer_scores,
        ops.pointer_scores_reference,
        {
            "additive": lambda: Inputs(tensors(weight=normal(3, seed=2))),
            "two queries at a time": lambda: Inputs(tensors(weight=normal(3, seed=2)), {"chunk_size": 2}),
            "without a weight": lambda: Inputs(tensors(queries=1)),
            "bilinear, fewer queries": lambda: Inputs(between(5), BILINEAR),
            "bilinear, fewer keys": lambda: Inputs(between(9), BILINEAR),
            "products": lambda: Inputs(tensors(), BILINEAR),
        },
        batch={"queries": 0, "keys": 0},
        dtype_of="queries",
        flops=flops,
    )
)
