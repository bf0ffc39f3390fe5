"""Layers and models whose latent attention is shared by the ranks of a group."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from attensor.nn.latent import LatentAttention
from attensor.ops._checks import checked
from attensor.parallel.groups import Ranks
from attensor.parallel.latent import ShardedLatentAttention
from attensor.parallel.tokens import TokenShardedLatentAttention

__all__ = ["shard", "shard_layers"]

Model = TypeVar("Model", bound=nn.Module)


@checked
def shard(
    layer: LatentAttention,
    group: dist.ProcessGroup | DeviceMesh | None = None,
    *,
    groups: int | None = None,
    by: Literal["heads", "tokens"] = "heads",
) -> ShardedLatentAttention | TokenShardedLatentAttention:
    """This rank's part of a latent attention; to be called in every rank, with the same weights.

    Args:
        layer: the whole one; stays as it is.
        group: who shares it: a group, a mesh of one dimension, or all processes.
        groups: slices of the latent, those of `layer.slicing` if None; 1 shares the heads alone, and is exact.
        by: `"heads"` (and slices), or `"tokens"`: every rank keeps its part of the tokens, all heads, no slices; exact.
    Raises:
        RuntimeError: torch.distributed has not been initialised.
        ValueError: ranks, heads, slices and the latent's width do not divide each other, `layer` is not cut into so
            many slices, has a softmax for all of them, or several latents, or projections that are no plain ones.
    """
    if by == "tokens":
        if groups not in (None, 1):
            raise ValueError(f'parallel: by="tokens" shares whole latents, got groups={groups}; leave it out.')
        return TokenShardedLatentAttention(layer, Ranks.of(group))
    if groups is None:
        groups = 1 if layer.slicing is None else layer.slicing.groups
    return ShardedLatentAttention(layer, Ranks.of(group), groups)


@checked
def shard_layers(
    model: Model,
    group: dist.ProcessGroup | DeviceMesh | None = None,
    *,
    groups: int | None = None,
    by: Literal["heads", "tokens"] = "heads",
) -> Model:
    """`shard` for every latent attention of a model, in place; all else stays whole in every rank.

    Args:
        model: with `nn.LatentAttention` in any places.
        group, groups, by: see `shard`.
    Raises:
        ValueError: no latent attention, or what `shard` refuses; then nothing is changed.
    """
    places = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, LatentAttention)
        and not isinstance(child, ShardedLatentAttention | TokenShardedLatentAttention)
    ]
    if not places:
        raise ValueError("shard_layers: model must have an nn.LatentAttention inside, got none; use shard for a layer.")
    parts = [shard(child, group, groups=groups, by=by) for _, _, child in places]
    for (module, name, _), part in zip(places, parts, strict=True):
        setattr(module, name, part)
    return model
