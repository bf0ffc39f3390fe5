r"""Latent attention over the ranks of a process group: by heads, and by slices of the latent (TPLA).

Of k ranks and g slices, k / g ranks have the same slice and share the heads. A decoding step reads the slice alone:

    rank (j, i):   y_ji = sum over the heads of part i:  softmax((gain_j Q c_j + q_r k_r) scale) c_j U W_O
    y = sum over all ranks of y_ji                        one all-reduce of [B, 1, C], and nothing else

A prompt is exact: every rank computes H / k heads of the whole latent, and keeps its slice. Without slices, g = 1,
that is all there is, and every rank keeps the whole. Sizes: H heads, R width of the latent, D of the rotary part.
Source: arXiv:2508.15881, sections 3.2 and 3.3 (separate prefill and decoding).
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F

from attensor.errors import ShapeError
from attensor.nn.cache import TokenCache
from attensor.nn.latent import LatentAttention
from attensor.nn.mixer import Heads
from attensor.ops import latent_attention
from attensor.ops._checks import checked
from attensor.parallel.groups import Ranks
from attensor.parallel.split import Place, check_shares, piece, split_state_dict

__all__ = ["ShardedLatentAttention", "shard", "shard_layers"]

Model = TypeVar("Model", bound=nn.Module)


class ShardedLatentAttention(LatentAttention):
    """One rank's part of a latent attention; the same call and the same result in every rank.

    All ranks must be given the same input. A cache holds R / groups + D numbers a token. Communication: one all-reduce
    of the output a call; a prompt that continues what the cache holds, and latents that are sliced, takes an all-gather
    of what is held before, B T R numbers. Weights of a rank: all of q_a and kv_a, `groups / ranks` of q_b and o_proj,
    `1 / ranks` of kv_b, and with slices as much again. No gradients.

    Args:
        layer: the whole one, or one on the meta device, to be loaded with `split_state_dict`.
        ranks: who shares it; without a group the output is this rank's term of the sum.
        groups: slices of the latent, those of `layer.slicing`; 1 for heads alone.
    Raises:
        ValueError: see `shard`.
    Cost: of a decoding step H groups / ranks heads of `latent_attention` with R / groups; of a prompt H / ranks.
    """

    def __init__(self, layer: LatentAttention, ranks: Ranks, groups: int = 1) -> None:
        _check_layer(layer, groups)
        place = Place(ranks.rank, ranks.size, groups)
        check_shares(place, layer.num_heads, layer.kv_rank)
        kept = {name: getattr(layer, name) for name in ("kv_rank", "q_rank", "nope_dim", "rotary_dim", "value_dim")}
        super().__init__(
            layer.hidden_size,
            layer.num_heads // place.parts,
            rotary=layer.rotary,
            slicing=layer.slicing if groups > 1 else None,
            device="meta",
            **kept,
        )
        self.peers, self.place = ranks, place
        self.prompt_heads = layer.num_heads // place.ranks
        rows = self.nope_dim + self.value_dim
        self.kv_b_proj = nn.Linear(self.kv_rank, self.prompt_heads * rows, bias=False, device="meta")
        if groups > 1:
            self.kv_slice = nn.Linear(self.kv_rank // groups, self.num_heads * rows, bias=False, device="meta")
        self.load_state_dict(split_state_dict(layer.state_dict(), place, layer.num_heads), assign=True)
        self.requires_grad_(False).train(layer.training)

    def forward(self, hidden_states: Tensor, *, cache: Any = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """As `LatentAttention`.

        Raises:
            RankError: another rank is gone, or came too late.
            RuntimeError: a gradient is asked for.
        """
        if torch.is_grad_enabled() and hidden_states.requires_grad:
            raise RuntimeError(
                "ShardedLatentAttention: hidden_states asks for gradients, which a sharded layer has not; call it "
                "under torch.no_grad(), or train the whole layer and shard it then."
            )
        positions = self._accepted(hidden_states, cache, cu_seqlens)
        is_sliced = self._slicing_of(hidden_states.shape[1], cache) is not None
        heads = self.project(hidden_states, positions, is_sliced=is_sliced)
        return self.merge(self.attend(heads, cache=cache, cu_seqlens=cu_seqlens), heads)

    def project(self, hidden_states: Tensor, positions: Tensor | None = None, *, is_sliced: bool = False) -> Heads:
        """As `LatentAttention`, for the heads of a prompt or, with slices, those of a decoding step."""
        if self.q_rank is None:
            source, up = hidden_states, self.q_proj
        else:
            source = self.q_a_layernorm(self.q_a_proj(hidden_states)).to(hidden_states.dtype)
            up = self.q_b_proj
        width = self.nope_dim + self.rotary_dim
        weight = up.weight if is_sliced else up.weight[self._own(len(up.weight))]
        q = torch.unflatten(F.linear(source, weight), -1, (-1, width))
        k = self.kv_a_proj_with_mqa(hidden_states)[..., None, :]
        if positions is not None:
            q, k = self._turned(q, positions), self._turned(k, positions)
        return Heads(q, k, k[..., : self.kv_rank])

    def attend(self, heads: Heads, *, cache: TokenCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Of the heads that `project` made: [B, T, heads, V]."""
        is_sliced = heads.q.shape[2] > self.prompt_heads
        latent, turned = torch.split(heads.k, self._kept, -1)
        normed = self._normed(latent, self.slicing if is_sliced else None)
        own = normed[..., self.place.columns(self.kv_rank)]
        kept, real = torch.cat([own, turned], -1), None
        if cache is not None:
            kept = cache.append(latent=kept)["latent"]
            real = cache.real(cache.length - kept.shape[1], cache.length)
        if not is_sliced and self.place.groups > 1:
            before = kept.shape[1] - latent.shape[1]
            known = [self._whole(kept[:, :before, :, : own.shape[-1]])] if before else []
            kept = torch.cat([torch.cat([*known, normed], 1), kept[..., own.shape[-1] :]], -1)
        return self._read(heads.q, kept, is_sliced, None if real is None else real[:, None, None], cu_seqlens)

    def merge(self, out: Tensor, heads: Heads) -> Tensor:
        """Output projection and the sum over all ranks: [B, T, heads, V] to [B, T, C]."""
        weight = self.o_proj.weight
        if out.shape[2] < self.num_heads:
            weight = weight[:, self._own(weight.shape[1])]
        return self.peers.sum(F.linear(out.flatten(-2), weight))

    def hand_over(self, cache: TokenCache) -> TokenCache:
        """This rank's part of what an unsharded layer has kept of a prompt, on whatever device that was.

        Args:
            cache: of the whole layer.
        Raises:
            ShapeError: of another layer.
        """
        state = cache.state_dict()
        if "latent" not in state or state["latent"].shape[-1] != sum(self._kept):
            found = {name: list(tensor.shape) for name, tensor in state.items()}
            raise ShapeError(
                f"ShardedLatentAttention.hand_over: cache must hold latent [B, T, 1, {sum(self._kept)}], got {found}; "
                "it is to be the whole layer's."
            )
        latent, turned = torch.split(state["latent"], self._kept, -1)
        own: TokenCache = self.new_cache(len(latent))
        own.load_state_dict({**state, "latent": torch.cat([latent[..., self.place.columns(self.kv_rank)], turned], -1)})
        return own

    def _own(self, count: int) -> slice:
        """Of as many rows or columns as the heads of a decoding step have, those of a prompt's heads."""
        return piece(count, self.place.group, self.place.groups)

    def _read(self, q: Tensor, kept: Tensor, is_sliced: bool, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
        """Queries to the whole latent or to the slice."""
        up = self.kv_slice.weight if is_sliced else self._up_weight(q)
        by_head = torch.unflatten(up.to(q.dtype), 0, (q.shape[2], -1))
        key_weight, value_weight = torch.split(by_head, [self.nope_dim, self.value_dim], 1)
        q, q_rotary = torch.split(q, [self.nope_dim, self.rotary_dim], -1)
        latent, k_rotary = torch.split(kept, [kept.shape[-1] - self.rotary_dim, self.rotary_dim], -1)
        if is_sliced and self.slicing is not None and self.slicing.gains is not None:
            q = q * self.slicing.gains[self.place.group]
        options: dict[str, Any] = {"attn_mask": mask, "cu_seqlens": cu_seqlens, "is_causal": True, "scale": self.scale}
        out: Tensor = latent_attention(
            q, latent, key_weight, value_weight, q_rotary=q_rotary, k_rotary=k_rotary, **options
        )
        return out

    def _whole(self, own: Tensor) -> Tensor:
        """[B, T, 1, R / groups] of every rank to [B, T, 1, R]; those with the same slice each send a part of it."""
        tokens, parts = own.shape[1], self.place.parts
        share = -(-tokens // parts)
        padded = F.pad(own, (0, 0, 0, 0, 0, share * parts - tokens))
        sent = padded[:, share * self.place.part : share * (self.place.part + 1)]
        found: Tensor = torch.unflatten(self.peers.gather(sent), 0, (self.place.groups, parts))
        # [G, parts, B, share, 1, R / G]
        return found.permute(2, 1, 3, 4, 0, 5).flatten(4).flatten(1, 2)[:, :tokens]

    def _new_cache(
        self, batch_size: int, max_length: int | None, device: torch.device, dtype: torch.dtype | None
    ) -> TokenCache:
        size = {"latent": (1, self.kv_rank // self.place.groups + self.rotary_dim)}
        return TokenCache(batch_size, size, max_length=max_length, device=device, dtype=dtype)


@checked
def shard(
    layer: LatentAttention, group: dist.ProcessGroup | DeviceMesh | None = None, *, groups: int | None = None
) -> ShardedLatentAttention:
    """This rank's part of a latent attention; to be called in every rank, with the same weights.

    Args:
        layer: the whole one; stays as it is.
        group: who shares it: a group, a mesh of one dimension, or all processes.
        groups: slices of the latent, those of `layer.slicing` if None; 1 shares the heads alone, and is exact.
    Raises:
        RuntimeError: torch.distributed has not been initialised.
        ValueError: ranks, heads, slices and the latent's width do not divide each other, `layer` is not cut into so
            many slices, has a softmax for all of them, or several latents, or projections that are no plain ones.
    """
    if groups is None:
        groups = 1 if layer.slicing is None else layer.slicing.groups
    return ShardedLatentAttention(layer, Ranks.of(group), groups)


@checked
def shard_layers(
    model: Model, group: dist.ProcessGroup | DeviceMesh | None = None, *, groups: int | None = None
) -> Model:
    """`shard` for every latent attention of a model, in place; all else stays whole in every rank.

    Args:
        model: with `nn.LatentAttention` in any places.
        group, groups: see `shard`.
    Raises:
        ValueError: no latent attention, or what `shard` refuses; then nothing is changed.
    """
    places = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, LatentAttention) and not isinstance(child, ShardedLatentAttention)
    ]
    if not places:
        raise ValueError("shard_layers: model must have an nn.LatentAttention inside, got none; use shard for a layer.")
    parts = [shard(child, group, groups=groups) for _, _, child in places]
    for (module, name, _), part in zip(places, parts, strict=True):
        setattr(module, name, part)
    return model


def _check_layer(layer: LatentAttention, groups: int) -> None:
    if layer.num_latents > 1 or isinstance(layer, ShardedLatentAttention):
        raise ValueError(
            f"parallel: layer must be a whole nn.LatentAttention with one latent, got {type(layer).__name__}."
        )
    odd = [
        name
        for name, child in layer.named_children()
        if name.endswith(("proj", "mqa")) and type(child) is not nn.Linear
    ]
    if odd:
        raise ValueError(
            f"parallel: projections must be plain nn.Linear to be cut, got {odd[0]}: "
            f"{type(getattr(layer, odd[0])).__name__}; merge adapters and undo quantisation first."
        )
    slicing = layer.slicing
    if groups > 1 and (slicing is None or slicing.groups != groups or not slicing.softmax):
        raise ValueError(
            f"parallel: {groups} groups need a layer with slicing of {groups} groups and a softmax each, got "
            f"slicing={slicing}; edit.rotate_latent gives it, or take groups=1."
        )
