"""What `from_attention` and `to_attention` of all layers share: projections that take over weights, and give them."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from attensor.errors import ShapeError
from attensor.nn.attention_weights import AttentionWeights

__all__ = [
    "accepted",
    "carry",
    "carry_repeated",
    "given",
    "given_repeated",
    "refuse_bidirectional",
    "refuse_qk_norm",
]


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


def carry_repeated(layer: Any, weights: AttentionWeights, key_heads: int, value_heads: int, value_dim: int) -> None:
    """Copy the projections into a layer that may have more key and value heads, and wider values.

    Heads are repeated; wider values are filled with copies, whose outputs are averaged.

    Args:
        layer: with `{q,k,v,o}_proj`.
        weights: of the attention.
        key_heads, value_heads: of the layer, multiples of the attention's.
        value_dim: width of a value in the layer.
    Raises:
        ShapeError: as of `carry`.
    """
    times, heads = max(value_dim // weights.head_dim, 1), weights.num_kv_heads
    k, k_bias = (_copied(x, 0, heads, key_heads // heads) for x in (weights.k, weights.k_bias))
    shared = [_copied(x, 0, heads, value_heads // heads) for x in (weights.v, weights.v_bias)]
    v, v_bias = (_copied(x, 0, value_heads, times) for x in shared)
    carry(layer, "q", layer.q_proj, weights.q, weights.q_bias)
    carry(layer, "k", layer.k_proj, cast("Tensor", k), k_bias)
    carry(layer, "v", layer.v_proj, cast("Tensor", v), v_bias)
    out = cast("Tensor", _copied(weights.out, 1, weights.num_heads, times)) / times
    carry(layer, "out", layer.o_proj, out, weights.out_bias)


def given_repeated(layer: Any, shared: int, key_heads: int, value_heads: int, times: int) -> dict[str, Tensor | None]:
    """Undo `carry_repeated`: of copies the first counts.

    Args:
        layer: with `{q,k,v,o}_proj` and `num_heads`.
        shared: key/value heads of the attention.
        key_heads, value_heads: of the layer.
        times: copies in a value.
    """
    tensors = given(q=layer.q_proj, k=layer.k_proj, v=layer.v_proj, out=layer.o_proj)
    for name, heads, copies in (("k", key_heads, 1), ("v", value_heads, times)):
        for part in (name, f"{name}_bias"):
            tensors[part] = _first(_first(tensors[part], 0, heads, copies), 0, shared, heads // shared)
    tensors["out"] = cast("Tensor", _first(tensors["out"], 1, layer.num_heads, times)) * times
    return tensors


def _copied(x: Tensor | None, axis: int, heads: int, times: int) -> Tensor | None:
    """Channels of every head along one axis, so many times one after the other."""
    if x is None or times == 1:
        return x
    return torch.cat([torch.unflatten(x, axis, (heads, -1))] * times, axis + 1).flatten(axis, axis + 1)


def _first(x: Tensor | None, axis: int, heads: int, times: int) -> Tensor | None:
    """Undo `_copied`."""
    if x is None or times == 1:
        return x
    by_head = torch.unflatten(x, axis, (heads, -1))
    return by_head.narrow(axis + 1, 0, by_head.shape[axis + 1] // times).flatten(axis, axis + 1)


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
