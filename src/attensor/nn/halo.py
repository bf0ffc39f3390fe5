"""Halo attention: the cells of a block attend to the block and a halo around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attensor.nn._shapes import check_range, head_dim
from attensor.nn.mixer import Heads, Mixer
from attensor.ops import halo_attention

__all__ = ["HaloAttention", "RelativeEmbedding"]


class RelativeEmbedding(nn.Module):
    """What queries are multiplied with for each row and column between them and a key; the same for all heads.

    Args:
        window: cells S along a side of a window.
        head_dim: width K of queries.
        device, dtype: of the tables.

    Attributes:
        height_rel, width_rel: [2 S - 1, K]; timm's names.
    """

    def __init__(
        self,
        window: int,
        head_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.height_rel, self.width_rel = (
            nn.Parameter(torch.empty(2 * window - 1, head_dim, device=device, dtype=dtype)) for _ in range(2)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with standard deviation K^-1/2."""
        for table in (self.height_rel, self.width_rel):
            nn.init.normal_(table, std=max(1, table.shape[1]) ** -0.5)


class HaloAttention(Mixer):
    """Every cell attends to its block of `block_size` x `block_size` cells and to `halo_size` more on every side.

    Positions multiply the queries. Cost O(cells * (block_size + 2 halo_size)^2 * C) and the projections; keys and
    values are copied (1 + 2 halo_size / block_size)^2 times. Maps of any size. With `query_stride` the map becomes
    smaller. Keys of the state_dict: `q.*`, `kv.*` (rows of k, then of v, head by head), `pos_embed.{height_rel,
    width_rel}`, `proj.*`.

    Args:
        hidden_size: channels C.
        num_heads: heads H.
        block_size: cells along a side of a block.
        halo_size: cells that a window reaches beyond it on every side.
        key_size: channels of all queries, and of all keys; C if None.
        value_size: channels of all values, and of the output without a projection; C if None.
        query_stride: keep every so many-th row and column of queries.
        output_projection: a linear layer back to C; without it the heads side by side are the output (timm).
        as_timm: as in timm's weights: cells of zeros are seen beyond the map, which nobody sees otherwise, and strided
            queries of a block have the positions of neighbours.
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels, or the stride not the block.
    Source: arXiv:2103.12731, section 3.1; layout of timm's `HaloAttn`.
    """

    ranks = (4,)

    shown = (*Mixer.shown, "block_size", "halo_size", "query_stride", "as_timm")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        block_size: int = 8,
        halo_size: int = 3,
        key_size: int | None = None,
        value_size: int | None = None,
        query_stride: int = 1,
        output_projection: bool = True,
        as_timm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_range(self, 1, hidden_size=hidden_size, block_size=block_size, query_stride=query_stride)
        check_range(self, 0, halo_size=halo_size)
        if block_size % query_stride:
            raise ValueError(
                f"{type(self).__name__}: block_size {block_size} is not a multiple of query_stride {query_stride}; "
                "change one of them."
            )
        keys, values = (hidden_size if size is None else size for size in (key_size, value_size))
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.key_dim = head_dim(self, keys, num_heads, argument="hidden_size" if key_size is None else "key_size")
        self.head_dim = head_dim(
            self, values, num_heads, argument="hidden_size" if value_size is None else "value_size"
        )
        self.block_size, self.halo_size, self.query_stride = block_size, halo_size, query_stride
        self.as_timm = as_timm
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q = nn.Conv2d(hidden_size, keys, 1, stride=query_stride, bias=False, **factory)
        self.kv = nn.Conv2d(hidden_size, keys + values, 1, bias=False, **factory)
        self.pos_embed = RelativeEmbedding(block_size + 2 * halo_size, self.key_dim, **factory)
        self.proj = nn.Linear(values, hidden_size, **factory) if output_projection else nn.Identity()

    def project(self, hidden_states: Tensor) -> Heads:
        """[B, rows, columns, C] to queries, at every `query_stride`-th place, keys and values by head."""
        x = hidden_states.movedim(-1, 1)
        q, kv = (layer(x).movedim(1, -1).unflatten(-1, (self.num_heads, -1)) for layer in (self.q, self.kv))
        return Heads(q, *kv.split([self.key_dim, self.head_dim], -1))

    def attend(self, heads: Heads) -> Tensor:
        """Attention of each block to its window: [B, rows', columns', H, V]."""
        return halo_attention(
            *heads[:3],
            block_size=self.block_size,
            halo_size=self.halo_size,
            query_stride=self.query_stride,
            relative_embedding=torch.stack([self.pos_embed.height_rel, self.pos_embed.width_rel]),
            border="zero" if self.as_timm else "mask",
            legacy_offsets=self.as_timm,
        )

    def merge(self, out: Tensor, heads: Heads) -> Tensor:
        """Output projection: [B, rows', columns', H, V] to [B, rows', columns', C]."""
        mixed: Tensor = self.proj(out.flatten(-2))
        return mixed

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """Values of the symbols of the card's formulas for an input of that size."""
        blocks = [-(-side // self.block_size) for side in space]
        padded = blocks[0] * blocks[1] * self.block_size**2
        sizes = {**super().cost_sizes(space), "K": self.key_dim, "V": self.head_dim}
        return {**sizes, "W": self.block_size + 2 * self.halo_size, "Q": padded}
