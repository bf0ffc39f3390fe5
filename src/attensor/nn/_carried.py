"""What `from_attention` and `to_attention` of all layers share: projections that take over weights, and give them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from attensor.errors import ShapeError

__all__ = ["accepted", "carry", "given", "refuse_bidirectional", "refuse_qk_norm"]


def accepted(layer: type[nn.Module], **offered: Any) -> dict[str, Any]:
    """Those of the options that the constructor of a layer takes, or the one that it hands all others to."""
    names: set[str] = set()
    for kind in layer.__mro__:
        if (constructor := vars(kind).get("__init__")) is None:
            continue
        own = inspect.signature(constructor).parameters.values()
        names.update(parameter.name for parameter in own)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in own):
            break
    return {name: value for name, value in offered.items() if name in names}


def carry(layer: nn.Module, name: str, projection: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Copy one projection into that of a layer, which gains a bias where only the other has one.

    Raises:
        ShapeError: the layer's projection has other sizes.
    """
    if projection.weight.shape != weight.shape:
        raise ShapeError(
            f"{type(layer).__name__}.from_attention: {name} must be {list(projection.weight.shape)} to fit the layer, "
            f'got {list(weight.shape)}; choose other options of the layer, or edit.swap(.., weights="fresh").'
        )
    with torch.no_grad():
        projection.weight.copy_(weight)
        own: Tensor | None = projection.bias
        if own is not None:
            own.zero_() if bias is None else own.copy_(bias)
        elif bias is not None:
            projection.bias = nn.Parameter(bias.detach().clone())


def given(**projections: nn.Linear) -> dict[str, Tensor | None]:
    """Weights and biases of projections under the names of `AttentionWeights`."""
    named: dict[str, Tensor | None] = {}
    for name, projection in projections.items():
        named[name] = projection.weight.detach()
        named[f"{name}_bias"] = None if projection.bias is None else projection.bias.detach()
    return named


def refuse_bidirectional(layer: type[nn.Module], is_causal: bool) -> None:
    """Refuse weights of an attention that sees the future for a layer that cannot.

    Raises:
        ValueError: is_causal is false.
    """
    if not is_causal:
        raise ValueError(
            f"{layer.__name__}.from_attention: weights must be of causal attention, got is_causal=False (an encoder); "
            'the layer reads from left to right. Take one that sees both sides: "softmax", "moh", "neighborhood".'
        )


def refuse_qk_norm(layer: nn.Module) -> None:
    """Refuse to give the projections of a layer without its norms of queries and keys.

    Raises:
        ValueError: it has such norms.
    """
    if hasattr(layer, "q_norm"):
        raise ValueError(
            f"{type(layer).__name__}.to_attention: qk_norm must be False, as projections alone do not say its norms; "
            "keep the layer, or swap with fresh weights."
        )
