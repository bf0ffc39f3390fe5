"""What padding of a batch means for layers with a recurrent state: such tokens must neither write nor age it.

Without a cache the real tokens are packed into one row. With a cache they are moved to the end of their rows: before
them the state is zero, and a token whose input is zero leaves it so (keys and values have no bias), so that all rows
have the same length and one cache serves them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.nn import pad, unpad

__all__ = ["Layout", "arrange"]


class Layout(NamedTuple):
    """How the tokens of a batch stand in what the layers see.

    Attributes:
        shape: B, T of the batch.
        cu_seqlens: [N + 1], packed sequences; None otherwise.
        sources: [real tokens], where each packed token came from; None if nothing was packed here.
        order: [B, T], which token stands at each place of a row that was aligned right; None otherwise.
        real: [B, T, 1], zero at padding, in the order of the layers; None if there is none.
    """

    shape: tuple[int, int]
    cu_seqlens: Tensor | None = None
    sources: Tensor | None = None
    order: Tensor | None = None
    real: Tensor | None = None

    def restore(self, hidden_states: Tensor) -> Tensor:
        """What the layers gave, in the batch's own order: [B, T, C], zeros at padding."""
        if self.sources is not None:
            return pad(hidden_states, self.sources, *self.shape)
        if self.order is None or self.real is None:
            return hidden_states
        kept = hidden_states * self.real
        return torch.empty_like(kept).scatter(1, self.order[..., None].expand_as(kept), kept)


def arrange(
    hidden_states: Tensor, attention_mask: Tensor | None, cu_seqlens: Tensor | None, past_length: int | None
) -> tuple[Tensor, Layout]:
    """Bring a batch into the order in which the layers shall see it.

    Args:
        hidden_states: [B, T, C], of the new tokens.
        attention_mask: [B, T] or [B, tokens before + T], true or 1 for real tokens; None if all are.
        cu_seqlens: [N + 1], if the batch is one row of packed sequences.
        past_length: tokens before these in the cache; None without a cache.
    Returns:
        hidden_states as the layers want them, and the layout that leads back.
    Raises:
        ShapeError: the mask fits neither the new nor all tokens.
        ValueError: padding after real tokens of the same row that a cache holds, or two descriptions of the batch.
    """
    shape = hidden_states.shape[0], hidden_states.shape[1]
    if cu_seqlens is not None:
        if attention_mask is not None or past_length is not None:
            raise ValueError("cu_seqlens excludes attention_mask and a cache (use_cache); give one description.")
        return hidden_states, Layout(shape, cu_seqlens=cu_seqlens)
    if attention_mask is None:
        return hidden_states, Layout(shape)
    mask = _new_part(attention_mask, shape, past_length or 0)
    if mask.all():
        return hidden_states, Layout(shape)
    if past_length is None:
        packed, cu_seqlens, sources = unpad(hidden_states, mask)
        return packed, Layout(shape, cu_seqlens=cu_seqlens, sources=sources)
    if past_length:
        _refuse_padding_after_tokens(attention_mask, shape[1])
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)  # padding first, else as it was
    aligned = hidden_states.gather(1, order[..., None].expand_as(hidden_states))
    real = mask.gather(1, order)[..., None].to(hidden_states.dtype)
    return aligned, Layout(shape, order=order, real=real)


def _new_part(attention_mask: Tensor, shape: tuple[int, int], past_length: int) -> Tensor:
    """The mask of the new tokens: [B, T], bool."""
    batch, tokens = shape
    if tuple(attention_mask.shape) not in ((batch, tokens), (batch, past_length + tokens)):
        expected = f"[{batch}, {tokens}]" + (f" or [{batch}, {past_length + tokens}]" if past_length else "")
        raise ShapeError(f"attention_mask must be {expected}, got {list(attention_mask.shape)}.")
    return attention_mask[:, attention_mask.shape[1] - tokens :].bool()


def _refuse_padding_after_tokens(attention_mask: Tensor, tokens: int) -> None:
    real = attention_mask.bool()
    before = real[:, :-tokens]
    # a mask of the new tokens alone says nothing of those before
    held = before.any(1, keepdim=True) if before.shape[1] else torch.ones_like(real[:, :1])
    padding_after = (held & ~real[:, -tokens:]).any(1)
    if padding_after.any():
        rows = padding_after.nonzero().squeeze(1).tolist()
        raise ValueError(
            f"attention_mask has padding after real tokens in rows {rows}, which continue a cache; a recurrent state "
            "cannot skip it. Run those rows alone, or run the whole sequences without a cache."
        )
