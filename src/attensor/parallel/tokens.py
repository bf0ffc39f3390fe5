r"""Latent attention over the ranks of a process group by tokens: each keeps its part of the past, for all heads.

    rank r of k keeps tokens r, r + k, r + 2 k, ..       (in turn, so that parts are as even while a text grows)
    out_r, lse_r = attention of every query to the tokens of rank r that it sees
    out = sum_r exp(lse_r - lse) out_r,   lse = log sum_r exp(lse_r)       one all-gather of [B, T, H, V + 1]

Exact, for prompts and steps alike, and the work of each rank is 1 / k of the pairs. What it reads and keeps falls with
the ranks, which sharing the heads does not do for one latent of all heads; its weights are all there in every rank.
Sizes: k ranks, B sequences, T new tokens, H heads, V value width, R width of the latent, D of the rotary part.
Source: arXiv:2310.01889, section 3 (merging parts); the layout is that of decode context parallelism in vLLM.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attensor.nn.base_cache import Cache
from attensor.nn.cache import TokenCache
from attensor.nn.latent import LatentAttention
from attensor.nn.mixer import Heads
from attensor.ops import latent_attention, merge_attention
from attensor.ops._checks import checked
from attensor.ops._packing import visible
from attensor.parallel.groups import Ranks
from attensor.parallel.latent import check_layer, refuse_gradients

__all__ = ["SharedTokenCache", "TokenShardedLatentAttention", "merge_over"]


@checked
def merge_over(ranks: Ranks, out: Tensor, lse: Tensor) -> Tensor:
    """The attention to what all ranks hold, from each one's to what it holds; the same in every rank.

    Args:
        ranks: who hold the parts.
        out: [B, T, H, V], this rank's; 0 where a query saw none of its tokens.
        lse: [B, T, H], its log-sum-exp, in at least float32; -inf there.
    Returns:
        [B, T, H, V] in out's dtype. One all-gather of [B, T, H, V + 1] in that of lse.
    Raises:
        RankError: another rank is gone, or came too late.
    """
    parts = ranks.gather(torch.cat([out.to(lse.dtype), lse[..., None]], -1))
    merged, _ = merge_attention([part[..., :-1] for part in parts], [part[..., -1] for part in parts])
    return merged.to(out.dtype)


class SharedTokenCache(TokenCache):
    """A cache of all tokens of which every `ranks.size`-th is held; length, padding and rows are those of all.

    Args:
        ranks: whose tokens: the first is that of place `ranks.rank`.
        max_length: tokens in all to reserve room for.
        options: see `TokenCache`.
    """

    def __init__(self, ranks: Ranks, *sizes: Any, max_length: int | None = None, **options: Any) -> None:
        self.ranks = ranks
        super().__init__(*sizes, max_length=None if max_length is None else self._count(max_length), **options)

    def append(self, **new: Tensor) -> dict[str, Tensor]:
        """Add those of the new tokens that are this rank's, and return all that it holds; see `TokenCache.append`."""
        tokens = next(iter(new.values())).shape[1]
        start = (self.ranks.rank - self.length) % self.ranks.size
        own = {name: tensor[:, start :: self.ranks.size] for name, tensor in new.items()}
        held = super().append(**own)
        self._advance(tokens - next(iter(own.values())).shape[1])
        return held

    def check_crop(self, length: int) -> None:
        """As of a cache that holds every token."""
        Cache.check_crop(self, length)

    def make_static(self, max_length: int) -> None:
        """Refuse: the size of what a step reads differs between ranks."""
        raise ValueError(
            "SharedTokenCache.make_static: ranks hold tokens in turn, so that no step reads as much as the one before; "
            "decode without a static cache, or share the heads."
        )

    def _count(self, length: int) -> int:
        """Of so many tokens, those that are this rank's."""
        return max(0, -((self.ranks.rank - length) // self.ranks.size))

    def _crop(self, length: int) -> None:
        for buffer in self._buffers.values():
            buffer.keep(self._count(length))

    def _sizes(self, name: str, length: int) -> list[int]:
        return [self._count(length), *self._buffers[name].storage.shape[2:]]


class TokenShardedLatentAttention(LatentAttention):
    """A latent attention whose past is shared by tokens; the same call and the same result in every rank.

    All ranks must be given the same input. A cache holds R + D numbers of every k-th token. Communication: one
    all-gather of each rank's outputs by head and their log-sum-exps a call. Weights of a rank: all, in the memory of
    the whole layer's. No gradients.

    Args:
        layer: the whole one.
        ranks: who shares it.
    Raises:
        ValueError: see `shard`.
    Cost: `latent_attention` of all heads to Tk / k tokens, and the projections of all heads.
    """

    @checked
    def __init__(self, layer: LatentAttention, ranks: Ranks) -> None:
        check_layer(layer, 1)
        kept = {name: getattr(layer, name) for name in ("kv_rank", "q_rank", "nope_dim", "rotary_dim", "value_dim")}
        super().__init__(layer.hidden_size, layer.num_heads, rotary=layer.rotary, device="meta", **kept)
        self.peers = ranks
        self.load_state_dict(layer.state_dict(), assign=True)
        self.requires_grad_(False).train(layer.training)

    def forward(self, hidden_states: Tensor, *, cache: Any = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """As `LatentAttention`.

        Raises:
            RankError: another rank is gone, or came too late.
            RuntimeError: a gradient is asked for.
        """
        refuse_gradients(self, hidden_states)
        return super().forward(hidden_states, cache=cache, cu_seqlens=cu_seqlens)

    def attend(self, heads: Heads, *, cache: TokenCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Of all heads to the tokens of all ranks: [B, T, H, V]."""
        latent, turned = torch.split(heads.k, self._kept, -1)
        kept = torch.cat([self._normed(latent, None), turned], -1)
        tokens, before = kept.shape[1], 0 if cache is None else cache.length
        own = slice(self.peers.rank, None, self.peers.size)  # a cache takes them by itself
        kept = kept[:, own] if cache is None else cache.append(latent=kept)["latent"]
        places = self.peers.rank + self.peers.size * torch.arange(kept.shape[1], device=kept.device)
        mask = self._seen(places, before, tokens, cache, cu_seqlens)
        return merge_over(self.peers, *self._partial(heads.q, kept, mask))

    def _seen(
        self, places: Tensor, before: int, tokens: int, cache: TokenCache | None, cu_seqlens: Tensor | None
    ) -> Tensor | None:
        """Which of the tokens at these places each of the new ones sees, [B or 1, 1, T, tokens held]; None for all."""
        if cu_seqlens is not None:
            return visible((cu_seqlens, cu_seqlens), (tokens, tokens), True)[None, None, :, places]
        is_padded = cache is not None and cache.real(0, 1) is not None
        if tokens == 1 and not is_padded:
            return None
        queries = torch.arange(before, before + tokens, device=places.device)
        mask = (places <= queries[:, None])[None, None]
        if cache is None or not is_padded:
            return mask
        return mask & (places >= cache.first[:, None])[:, None, None]

    def _partial(self, q: Tensor, kept: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The attention to what this rank keeps, and its log-sum-exp."""
        by_head = torch.unflatten(self._up_weight(q), 0, (self.num_heads, -1))
        key_weight, value_weight = torch.split(by_head, [self.nope_dim, self.value_dim], 1)
        q, q_rotary = torch.split(q, [self.nope_dim, self.rotary_dim], -1)
        latent, k_rotary = torch.split(kept, self._kept, -1)
        found: tuple[Tensor, Tensor] = latent_attention(
            q,
            latent,
            key_weight,
            value_weight,
            q_rotary=q_rotary,
            k_rotary=k_rotary,
            scale=self.scale,
            attn_mask=mask,
            return_lse=True,
        )
        return found

    def _new_cache(
        self, batch_size: int, max_length: int | None, device: torch.device, dtype: torch.dtype | None
    ) -> TokenCache:
        size = {"latent": (1, sum(self._kept))}
        return SharedTokenCache(self.peers, batch_size, size, max_length=max_length, device=device, dtype=dtype)
