"""Another attention in a trained model, and the way back: one loop over its sites.

    edit.swap(model, to="sliding-window", layers=[0, 1], window_size=64)
    edit.restore(model)

A layer that offers `from_attention` begins with the projections that were trained; whether it then computes what the
attention did is a matter of the layer, and of training on (`edit.align`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, cast

from torch import nn

from attensor import catalogue
from attensor.nn._carried import accepted
from attensor.ops._checks import checked
from attensor.sites import AttentionSite, AttentionWeights, find_sites

__all__ = ["chosen", "layer_for", "restore", "swap"]

Model = TypeVar("Model", bound=nn.Module)
Made = Callable[[AttentionWeights], nn.Module]


@checked
def swap(
    model: Model,
    to: str | Made,
    *,
    layers: Sequence[int] | None = None,
    weights: Literal["carry", "fresh"] = "carry",
    **options: Any,
) -> Model:
    """Put another attention into a model, in place; all layers or, if one cannot be swapped, none.

    The original modules are kept aside for `restore`, outside of the model's parameters: they cost memory, not time.
    Dropout of attention weights is not carried over. A model that was compiled must be compiled again.

    Args:
        model: with attentions that `sites.find_sites` knows.
        to: a mechanism of the catalogue with `swaps_into` (`attensor list`), or a function from `AttentionWeights` to a
            layer.
        layers: which attentions, by their place in the model from 0, negative ones from the end; all if None.
        weights: `"carry"` the projections over, or draw the layers `"fresh"`.
        options: of the layer, for instance `window_size=64`; for `nn.MultiheadAttention`, which does not know it,
            `is_causal=True` where it is called with a causal mask.
    Returns:
        The model.
    Raises:
        ValueError: no attention is found, an unknown mechanism or one that cannot take the place, a layer out of range,
            a model that has more than projections say.
        ShapeError: projections that do not fit the layer.
    """
    if weights not in ("carry", "fresh"):
        raise ValueError(f'swap: weights must be "carry" or "fresh", got {weights!r}.')
    found = find_sites(model)
    fresh = weights == "fresh"
    _put(
        [
            (found[i], layer_for(to, found[i], i, len(found), options, is_fresh=fresh))
            for i in chosen(found, layers, "swap")
        ]
    )
    return model


def _put(made: Sequence[tuple[AttentionSite, nn.Module]]) -> None:
    """All layers in the place of their attentions, or none."""
    swapped: list[AttentionSite] = []
    before = [site.layer for site, _ in made]
    try:
        for site, layer in made:
            site.replace(layer)
            swapped.append(site)
    except Exception:
        for site, past in zip(swapped, before):
            site.restore() if past is None else site.replace(past)
        raise


@checked
def restore(
    model: Model, *, layers: Sequence[int] | None = None, weights: Literal["carry", "original"] = "carry"
) -> Model:
    """Put the original attention back, in place.

    Args:
        model: one that `swap` changed.
        layers: which attentions; all that were swapped if None.
        weights: `"carry"` back what the layers' projections are now, bit for bit what they were unless they were
            trained; `"original"`: those that the modules had.
    Returns:
        The model.
    Raises:
        ValueError: a layer that has no `to_attention`, or learned what the original has no place for.
    """
    if weights not in ("carry", "original"):
        raise ValueError(f'restore: weights must be "carry" or "original", got {weights!r}.')
    found = find_sites(model)
    back = [site for site in (found[index] for index in chosen(found, layers, "restore")) if site.is_replaced]
    carried = [site.weights() if weights == "carry" else None for site in back]
    for site, projections in zip(back, carried):
        site.restore(projections)
    return model


def chosen(found: Sequence[AttentionSite], layers: Sequence[int] | None, name: str) -> list[int]:
    """Places of the attentions that were asked for, in rising order.

    Raises:
        ValueError: none, or one out of range.
    """
    count = len(found)
    asked = range(count) if layers is None else layers
    for index in asked:
        if not -count <= index < count:
            raise ValueError(
                f"{name}: layers must be from {-count} to {count - 1} for {count} attentions, got {index}."
            )
    if not asked:
        raise ValueError(f"{name}: layers must name an attention, got none; leave it out for all.")
    return sorted({index % count for index in asked})


def layer_for(
    to: str | Made, site: AttentionSite, index: int, count: int, options: dict[str, Any], *, is_fresh: bool = False
) -> nn.Module:
    """The layer that is to stand in for one attention.

    Args:
        to, options: as of `swap`.
        site: the attention.
        index, count: its place in the model, and attentions that the model has.
        is_fresh: draw it anew.
    """
    layer: Any
    weights, options = site.weights(), dict(options)
    if site.kind == "torch":
        weights = dataclasses.replace(weights, is_causal=bool(options.pop("is_causal", False)))
    if not isinstance(to, str):
        layer = to(weights)
    else:
        try:
            mechanism = catalogue.mechanism(to)
        except ValueError as error:
            raise ValueError(f"swap: to must be a mechanism: {error}") from None
        if mechanism.name == "softmax" and site.kind == "transformers" and weights.window_size is not None:
            mechanism = catalogue.mechanism("sliding-window")  # what softmax attention with a window is
        kind = catalogue.load(mechanism.layer)
        if not hasattr(kind, "from_attention") or (site.kind != "attensor" and site.kind not in mechanism.swaps_into):
            others = catalogue.mechanisms().items()
            able = [
                n for n, one in others if site.kind in one.swaps_into or (one.swaps_into and site.kind == "attensor")
            ]
            raise ValueError(
                f"swap: to={to!r} cannot stand in for attention of {site.kind}; these can: {', '.join(able)}."
            )
        place = accepted(kind, layer_index=index, num_layers=count)
        layer = kind.from_attention(weights, **{**place, **options})
    if not isinstance(layer, nn.Module):
        raise TypeError(f"swap: to must make a layer of attensor, got {type(layer).__name__} from {to!r:.80}.")
    if is_fresh:
        cast("Any", layer).reset_parameters()
    return layer
