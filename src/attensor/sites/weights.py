"""The weights of a softmax attention, read from the modules of other libraries and written back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.nn.attention_weights import AttentionWeights as AttentionWeights

__all__ = ["AttentionWeights", "read", "thirds", "write"]


def write(who: str, own: AttentionWeights, new: AttentionWeights) -> None:
    """Copy weights into the memory of others, all or none.

    Args:
        who: the site, for messages.
        own: views of the parameters that receive them.
        new: what they shall hold.
    Raises:
        ShapeError: a tensor of another shape.
        ValueError: a bias that is not zero, and no parameter for it.
    """
    names = [f"{part}{what}" for part in ("q", "k", "v", "out") for what in ("", "_bias")]
    targets = [(name, getattr(own, name), getattr(new, name)) for name in names]
    for name, parameter, tensor in targets:
        if parameter is not None and tensor is not None and parameter.shape != tensor.shape:
            raise ShapeError(
                f"{who}: {name} must be {list(parameter.shape)}, got {list(tensor.shape)}; keep the layer, or restore "
                "the original weights."
            )
        if parameter is None and tensor is not None and bool(tensor.any()):
            raise ValueError(
                f"{who}: {name} has no place in the original module, but the layer learned one; keep the layer, or "
                "restore the original weights."
            )
    with torch.no_grad():
        for _, parameter, tensor in targets:
            if parameter is not None:
                parameter.zero_() if tensor is None else parameter.copy_(tensor)


def read(pairs: Iterable[tuple[Tensor, Tensor | None]], **sizes: Any) -> AttentionWeights:
    """Weights and biases of q, k, v and out, `[out, in]`, with the sizes of `AttentionWeights`."""
    tensors: dict[str, Any] = {}
    for name, (weight, bias) in zip(("q", "k", "v", "out"), pairs, strict=True):
        tensors[name], tensors[f"{name}_bias"] = weight.detach(), None if bias is None else bias.detach()
    return AttentionWeights(**tensors, **sizes)


def thirds(weight: Tensor, bias: Tensor | None, axis: int = 0) -> list[tuple[Tensor, Tensor | None]]:
    """Those of queries, keys and values from a joint projection."""
    biases = [None] * 3 if bias is None else bias.chunk(3)
    return list(zip(weight.chunk(3, axis), biases))
