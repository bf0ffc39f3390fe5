"""What padding of a batch means for its layers: nobody sees such tokens, and they neither write nor age a state.

Without a cache the real tokens are packed into one row. With a cache they are moved to the end of their rows, so that
all rows have the same length, and the cache knows how many tokens of padding each row begins with (`Cache.first`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.errors import ShapeError
from attensor.nn import Cache, pad, unpad

__all__ = ["Layout", "arrange", "packed_boundaries"]


class Layout(NamedTuple):
    """How the tokens of a batch stand in what the layers see.

    Attributes:
        shape: B, T of the batch.
        cu_seqlens: [N + 1], packed sequences; None otherwise.
        sources: [real tokens], where in B * T each real token came from; None if nothing was moved here.
        places: [real tokens], where in B * T it stands in rows that were aligned right; None if they were packed.
    """

    shape: tuple[int, int]
    cu_seqlens: Tensor | None = None
    sources: Tensor | None = None
    places: Tensor | None = None

    def restore(self, hidden_states: Tensor) -> Tensor:
        """What the layers gave, in the batch's own order: [B, T, C], zeros at padding."""
        if self.sources is None:
            return hidden_states
        packed = hidden_states if self.places is None else hidden_states.flatten(0, 1)[self.places][None]
        return pad(packed, self.sources, *self.shape)


def arrange(
    hidden_states: Tensor, attention_mask: Tensor | None, cu_seqlens: Tensor | None, pasts: Sequence[Cache] | None
) -> tuple[Tensor, Layout]:
    """Bring a batch into the order in which the layers shall see it, and tell their caches of padding.

    Args:
        hidden_states: [B, T, C], of the new tokens.
        attention_mask: [B, T] or [B, tokens before + T], true or 1 for real tokens; None if all are.
        cu_seqlens: [N + 1], if the batch is one row of packed sequences.
        pasts: the caches that the tokens continue, one for each layer; None without.
    Returns:
        hidden_states as the layers want them, and the layout that leads back.
    Raises:
        ShapeError: the mask fits neither the new nor all tokens.
        ValueError: padding after real tokens of the same row that a cache holds, or two descriptions of the batch.
    """
    shape = hidden_states.shape[0], hidden_states.shape[1]
    if cu_seqlens is not None:
        if attention_mask is not None or pasts is not None:
            raise ValueError("cu_seqlens excludes attention_mask and a cache (use_cache); give one description.")
        return hidden_states, Layout(shape, cu_seqlens=cu_seqlens)
    if attention_mask is None:
        return hidden_states, Layout(shape)
    mask = _new_part(attention_mask, shape, pasts[0].length if pasts else 0)
    if mask.all():
        return hidden_states, Layout(shape)
    packed, cu_seqlens, sources = unpad(hidden_states, mask)
    if not pasts:
        return packed, Layout(shape, cu_seqlens=cu_seqlens, sources=sources)
    _begin_later(pasts, mask)
    places = mask.byte().sort(dim=1).values.flatten().nonzero().squeeze(1)  # as many, at the end of each row
    return pad(packed, places, *shape), Layout(shape, sources=sources, places=places)


def packed_boundaries(
    cu_seq_lens_q: Tensor | None = None, position_ids: Tensor | None = None, **_: Any
) -> Tensor | None:
    """Boundaries [N + 1] of sequences packed into one row, as transformers' collators tell them; None if nothing does.

    Args:
        cu_seq_lens_q: the boundaries themselves.
        position_ids: [1, T], which start again at 0 with each sequence.
    """
    if cu_seq_lens_q is not None or position_ids is None or position_ids.shape[0] != 1:
        return cu_seq_lens_q
    starts = (position_ids[0] == 0).nonzero().squeeze(1)
    return F.pad(starts, (0, 1), value=position_ids.shape[1]) if len(starts) > 1 else None


def _new_part(attention_mask: Tensor, shape: tuple[int, int], past_length: int) -> Tensor:
    """The mask of the new tokens: [B, T], bool."""
    batch, tokens = shape
    if tuple(attention_mask.shape) not in ((batch, tokens), (batch, past_length + tokens)):
        expected = f"[{batch}, {tokens}]" + (f" or [{batch}, {past_length + tokens}]" if past_length else "")
        raise ShapeError(f"attention_mask must be {expected}, got {list(attention_mask.shape)}.")
    return attention_mask[:, attention_mask.shape[1] - tokens :].bool()


def _begin_later(pasts: Sequence[Cache], mask: Tensor) -> None:
    """Rows that hold no real token yet begin after the padding of the new tokens; others may not be padded."""
    before, padding = pasts[0].length, (~mask).sum(1)
    first = pasts[0].first.to(mask.device) if before else torch.zeros_like(padding)
    has_begun = first < before
    padded_after = has_begun & (padding > 0)
    if padded_after.any():
        rows = padded_after.nonzero().squeeze(1).tolist()
        raise ValueError(
            f"attention_mask has padding after real tokens in rows {rows}, which continue a cache; it holds one run of "
            "tokens a row. Run those rows alone, or run the whole sequences without a cache."
        )
    first = torch.where(has_begun, first, before + padding)
    for past in pasts:
        past.first = first
