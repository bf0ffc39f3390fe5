"""Kernelised attention with relative positions as a layer: random features, a bias for every offset, decode cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attensor.nn._shapes import check_range, head_dim
from attensor.nn.cache import TokenCache
from attensor.nn.mixer import Heads, SequenceMixer
from attensor.ops import PositiveRandomFeatures, relative_kernel_attention
from attensor.ops.feature_maps import random_projection
from attensor.ops.relative_kernel_attention.cost import keys_per_query

__all__ = ["RelativeKernelAttention"]


class RelativeKernelAttention(SequenceMixer):
    """Attention by positive random features of unit queries and keys, sharpened by a learned bias of every offset.

    Cost O(T log T C num_features) or O(T^2 (C + num_features)), whichever is less; decoding keeps the features of all
    keys and all values. Keys of the state_dict: `{q,k,v,o}_proj.weight`, `relative_bias` and, fixed, `projection`.

    Args:
        hidden_size: channels C of input and output.
        num_heads: heads H, each of C / H channels.
        num_features: random features M of a head.
        max_distance: P; offsets of P - 1 and more share a bias.
        space_dims: 1 for sequences [B, T, C], 2 for grids [B, height, width, C].
        is_causal: a token sees itself and what comes before it; sequences only.
        normalize: queries and keys are divided by their length; otherwise multiplied by `(C / H) ** -0.25` (Performer).
        device, dtype: of the parameters.

    Attributes:
        relative_bias: [H, 2 P - 1], offset key - query at entry key - query + P - 1; on grids [H, 2 P - 1, 2 P - 1].
        projection: [H, M, C / H], the directions of the random features, drawn once.
    Raises:
        ValueError: heads do not divide the channels, a causal grid, a size below 1.
    Source: arXiv:2106.12566, section 3.
    """

    shown = (*SequenceMixer.shown, "num_features", "max_distance", "space_dims", "is_causal", "normalize")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_features: int = 32,
        max_distance: int = 128,
        space_dims: int = 1,
        is_causal: bool = True,
        normalize: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.head_dim = head_dim(self, hidden_size, num_heads)
        if space_dims not in (1, 2) or (is_causal and space_dims == 2):
            raise ValueError(
                f"{type(self).__name__}: space_dims must be 1, or 2 with is_causal=False, got {space_dims} with "
                f"is_causal={is_causal}."
            )
        check_range(self, 1, num_features=num_features, max_distance=max_distance)
        self.num_features, self.max_distance = num_features, max_distance
        self.space_dims, self.is_causal, self.normalize = space_dims, is_causal, normalize
        self.ranks = (space_dims + 2,)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(hidden_size, hidden_size, bias=False, device=device, dtype=dtype) for _ in range(4)
        )
        offsets = (2 * max_distance - 1,) * space_dims
        self.relative_bias = nn.Parameter(torch.empty(num_heads, *offsets, device=device, dtype=dtype))
        self.projection: Tensor
        self.register_buffer(
            "projection", torch.empty(num_heads, num_features, self.head_dim, device=device, dtype=dtype)
        )
        self.reset_own_parameters()

    def reset_own_parameters(self) -> None:
        """Draw the random features anew; all biases 0."""
        with torch.no_grad():
            self.relative_bias.zero_()
            self.projection.copy_(random_projection(*self.projection.shape))

    def project(self, hidden_states: Tensor, positions: Tensor | None = None) -> Heads:
        """[B, *space, C] to features of queries and keys [B, *space, H, M] in at least float32, and values."""
        q, k, v = (
            project(hidden_states).unflatten(-1, (self.num_heads, self.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        features = PositiveRandomFeatures(self.projection, normalize=self.normalize)
        return Heads(features.queries(q), features(k), v)

    def attend(self, heads: Heads, *, cache: TokenCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Kernel attention over the tokens and what the cache holds: [B, *space, H, C / H]."""
        keys, values = heads.k, heads.v.to(torch.promote_types(heads.v.dtype, torch.float32))
        if cache is not None:
            real = cache.real(cache.length, cache.length + keys.shape[1])
            if real is not None:
                # a key without features has no weight
                keys, values = (x.masked_fill(~real[..., None, None], 0.0) for x in (keys, values))
            keys, values = cache.append(keys=keys, values=values).values()
        out: Tensor = relative_kernel_attention(
            heads.q, keys, values, relative_bias=self.relative_bias, is_causal=self.is_causal, cu_seqlens=cu_seqlens
        )
        return out.to(heads.v.dtype)

    def merge(self, out: Tensor, heads: Heads) -> Tensor:
        """Output projection: [B, *space, H, C / H] to [B, *space, C]."""
        mixed: Tensor = self.o_proj(out.flatten(-2))
        return mixed

    def _new_cache(
        self, batch_size: int, max_length: int | None, device: torch.device, dtype: torch.dtype | None
    ) -> TokenCache:
        return TokenCache(
            batch_size,
            {"keys": (self.num_heads, self.num_features), "values": (self.num_heads, self.head_dim)},
            max_length=max_length,
            device=device,
            dtype=None if dtype is None else torch.promote_types(dtype, torch.float32),
        )

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """Values of the symbols of the card's formulas for an input of that size."""
        reach = self.max_distance - 1 if self.space_dims == 1 else None
        keys = keys_per_query(space, self.num_features, self.head_dim + 1, is_causal=self.is_causal, reach=reach)
        return {**super().cost_sizes(space), "F": self.num_features, "M": keys}
