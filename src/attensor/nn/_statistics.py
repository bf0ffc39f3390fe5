"""Sums of q q^T over what comes before: tokens cut into blocks, and for every block the sum over all earlier ones.

Sizes: B rows, T tokens, H heads, D head width, N blocks, S tokens in a block. Blocks are counted from the first real
token of each row or packed sequence, so that padding and packing change nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attensor.ops._blocks import Axis, from_blocks, to_blocks
from attensor.ops._free_sizes import in_rows, whole

__all__ = ["Blocks", "blocks_of_packed", "blocks_of_padded", "blocks_of_rows", "gram"]


def gram(q: Tensor) -> Tensor:
    """[..., S, H, D] to the sum over its tokens of q q^T: [..., H, D, D]."""
    by_head = q.transpose(-3, -2)
    return torch.matmul(by_head.mT, by_head)


class Blocks(NamedTuple):
    """Queries in blocks, zeros where no token is.

    Attributes:
        q: [B, N, S, H, D].
        tokens: T.
        lead: places before the first token, where all rows have the same.
        slots: [B, T], place of each token among the N * S; None: one after the other behind `lead`.
        sequences: [N], of packed sequences, whose block it is; None: a row is one.
    """

    q: Tensor
    tokens: int
    lead: int = 0
    slots: Tensor | None = None
    sequences: Tensor | None = None

    def before(self, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """For every block the sum over the earlier ones and over the past, and the sum over everything.

        Args:
            past: [B, H, D, D], sum over earlier tokens; zeros if None.
        Returns:
            [B, N, H, D, D] and [B, H, D, D].
        """
        own = gram(self.q)
        if self.sequences is not None:
            order = torch.arange(len(self.sequences), device=own.device)
            is_earlier = (self.sequences[:, None] == self.sequences) & (order[:, None] > order)
            return torch.einsum("ij,bjhde->bihde", is_earlier.to(own.dtype), own), own.sum(1)
        past = own.new_zeros(own.shape[0], *own.shape[2:]) if past is None else past
        sums = torch.cat([past[:, None], own], 1).cumsum(1)
        return sums[:, :-1], sums[:, -1]

    def times(self, operators: Tensor) -> Tensor:
        """Every query times the operator of its block, [B, N, H, D, D]: [B, T, H, D]."""
        turned = torch.matmul(self.q.transpose(2, 3), operators).transpose(2, 3)
        if self.slots is None:
            return _in_order(turned, self.lead, self.tokens)
        flat = turned.flatten(1, 2)
        places = self.slots.clamp(max=flat.shape[1] - 1)[..., None, None]  # padding reads something, and is dropped
        return flat.gather(1, places.expand(-1, -1, *flat.shape[2:]))

    def last(self) -> Tensor:
        """[B], the block of each row's last token."""
        most = self.q.shape[1] - 1
        if self.slots is None:
            return torch.full((self.q.shape[0],), most, device=self.q.device)
        return (self.slots[:, -1] // self.q.shape[2]).clamp(max=most)


def blocks_of_rows(q: Tensor, size: int, lead: int = 0) -> Blocks:
    """All rows alike: `lead` places of the first block are taken already."""
    batch, tokens = q.shape[:2]
    x = q if not lead else torch.nn.functional.pad(q, (0, 0, 0, 0, lead, 0))
    axis = Axis(x.shape[1], size, whole(x.shape[1], size) // size, False)
    cut = in_rows(to_blocks(x, (axis,)), (batch, axis.blocks, size, *q.shape[2:]))
    return Blocks(cut, tokens, lead)


def blocks_of_padded(q: Tensor, size: int, offset: int, first: Tensor, real: Tensor) -> Blocks:
    """Rows that begin at places of their own.

    Args:
        q: [B, T, H, D].
        size: S.
        offset: place of the first of these tokens.
        first: [B], place of each row's first real token.
        real: [B, T], whether a token is real.
    """
    tokens = q.shape[1]
    count = (2 * size - 2 + tokens) // size
    place = torch.arange(offset, offset + tokens, device=q.device) - first[:, None]
    begun = (offset - first).clamp(min=0) // size * size
    slots = torch.where(real, place - begun[:, None], count * size)
    return Blocks(_placed(q, slots, count, size), tokens, 0, slots)


def blocks_of_packed(q: Tensor, size: int, cu_seqlens: Tensor) -> Blocks:
    """Sequences in one row, each cut from its own beginning."""
    tokens, starts = q.shape[1], cu_seqlens.long()
    place = torch.arange(tokens, device=q.device)
    sequence = torch.searchsorted(starts, place, right=True) - 1
    position = place - starts[sequence]
    count = tokens // size + len(starts) - 1
    block = (position % size == 0).long().cumsum(0) - 1
    slots = (block * size + position % size)[None]
    owners = torch.zeros(count, dtype=torch.long, device=q.device).scatter(0, block, sequence)
    return Blocks(_placed(q, slots, count, size), tokens, 0, slots, owners)


def _placed(q: Tensor, slots: Tensor, count: int, size: int) -> Tensor:
    """Tokens in their slots; those of slot N * S nowhere: [B, N, S, H, D]."""
    batch, _, *sizes = q.shape
    room = q.new_zeros(batch, count * size + 1, *sizes)
    filled = room.scatter(1, slots[..., None, None].expand(-1, -1, *sizes), q)
    return torch.unflatten(filled[:, :-1], 1, (count, size))


def _in_order(blocks: Tensor, lead: int, tokens: int) -> Tensor:
    batch, count, size, *sizes = blocks.shape
    axis = Axis(lead + tokens, size, count, False)
    return from_blocks(in_rows(blocks, (batch * count, size, *sizes)), (axis,), batch)[:, lead:]
