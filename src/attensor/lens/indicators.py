"""Five numbers that say what an attention map does, and those of every attention of a model.

    entropy        - sum_ij a_ij log a_ij                     how widely tokens look
    concentration  sqrt(sum_ij a_ij^2)                        how far few weights have it all
    diversity      mean over i >= j of std over heads a_ij    how different the heads are
    sink           mean_i a_i0                                what goes to the first token
    local focus    mean_i a_{i, i - n}, n = 0 .. 3            what goes to the token n places before

Source: arXiv:2510.11602, section 5 (before its scaling for plots).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from attensor.errors import ShapeError
from attensor.ops._checks import check_float, check_tensor, checked
from attensor.sites import AttentionSite, Captured, capture, find_sites

__all__ = ["Indicators", "indicators", "model_indicators"]

PLACES = 4  # of the local focus


@dataclass(frozen=True)
class Indicators:
    """Of maps [.., H, L, L].

    Attributes:
        entropy: [.., H], in nats, of the whole map; divided by L it is that of a token.
        concentration: [.., H], Frobenius norm of the map.
        head_diversity: [..], 0 where there is one head.
        sink: [.., H].
        local_focus: [.., H, 4], 0 where the map has no token so far before.
    """

    entropy: Tensor
    concentration: Tensor
    head_diversity: Tensor
    sink: Tensor
    local_focus: Tensor


@checked
def indicators(attention: Tensor) -> Indicators:
    """The indicators of attention weights.

    Args:
        attention: [.., H, L, L], rows are queries; each sums to 1. What is above the diagonal counts for entropy and
            concentration alone.
    Raises:
        ShapeError: another rank, no square, or no tokens. TypeError: no floating tensor.
    Cost: O(H L^2), in at least float32.
    Source: arXiv:2510.11602, section 5; the standard deviation is that of the heads there are (divided by H).
    """
    check_tensor("indicators", "attention", attention)
    check_float("indicators", "attention", attention, attention, "attention")
    if attention.ndim < 3 or attention.shape[-1] != attention.shape[-2] or 0 in attention.shape[-3:]:
        raise ShapeError(
            f"indicators: attention must be [.., H, L, L] with tokens, got {list(attention.shape)}; give the weights "
            "of whole rows, as sites.capture does."
        )
    a = attention.to(torch.promote_types(attention.dtype, torch.float32))
    length = a.shape[-1]
    spread = a.std(-3, correction=0).tril().sum((-2, -1))
    local = [a.diagonal(-n, -2, -1).mean(-1) if n < length else torch.zeros_like(a[..., 0, 0]) for n in range(PLACES)]
    return Indicators(
        entropy=-torch.xlogy(a, a).sum((-2, -1)),
        concentration=a.square().sum((-2, -1)).sqrt(),
        head_diversity=2 * spread / (length * (length + 1)),
        sink=a[..., 0].mean(-1),
        local_focus=torch.stack(local, -1),
    )


@checked
@torch.no_grad()
def model_indicators(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Indicators]:
    """The indicators of every attention of a model that has weights, the mean over the rows of a batch.

    Args:
        model: of transformers, timm, torch or attensor, in the mode that it shall run in.
        inputs: what it is called with, by name; rows without padding.
    Returns:
        Name of an attention -> its indicators, [H] and so on; what is no average over all tokens is left out. Where
        weights are negative, as in diagonal Taylor attention, the entropy is NaN.
    Raises:
        ValueError: none has weights, or what the model itself refuses.
    """
    found: dict[str, Indicators] = {}

    def receive(site: AttentionSite, captured: Captured) -> None:
        if captured.weights is not None:
            every = indicators(captured.weights)
            found[site.name] = Indicators(**{f.name: getattr(every, f.name).mean(0) for f in fields(every)})

    attentions = [site for site in find_sites(model) if site.has_map]
    if not attentions:
        raise ValueError(
            f"model_indicators: model must have attention that averages over all tokens, got {type(model).__name__} "
            "without; windows, and recurrences that do not divide by the sum of their weights, have no such map."
        )
    with capture(attentions, ["weights"], receive=receive):
        model(**inputs)
    return found
