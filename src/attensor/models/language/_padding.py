"""What padding of a batch means for its layers: nobody sees such tokens, and they neither write nor age a state.

Without a cache the real tokens are packed into one row; in a compiled graph, whose sizes cannot depend on a mask, the
padding too, as sequences of its own. With a cache real tokens are moved to the end of their rows, so that all rows have
the same length, and the cache knows how many tokens of padding each row begins with (`Cache.first`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.errors import ShapeError
from attensor.nn import Cache, pad, unpad

__all__ = ["Layout", "arrange", "require"]


class Layout(NamedTuple):
    """How the tokens of a batch stand in what the layers see.

    Attributes:
        shape: B, T of the batch.
        cu_seqlens: [N + 1], packed sequences; None otherwise.
        sources: [tokens of the layers], where in B * T each of them comes from; None if nothing is moved.
        is_real: [tokens of the layers], bool; None if all are.
    """

    shape: tuple[int, int]
    cu_seqlens: Tensor | None = None
    sources: Tensor | None = None
    is_real: Tensor | None = None

    def enter(self, hidden_states: Tensor) -> Tensor:
        """What the layers shall see of a batch [B, T, C]."""
        if self.sources is None:
            return hidden_states
        moved = self._real_alone(hidden_states.flatten(0, 1)[self.sources])
        return moved[None] if self.cu_seqlens is not None else torch.unflatten(moved, 0, self.shape)

    def restore(self, hidden_states: Tensor) -> Tensor:
        """What the layers gave, in the batch's own order: [B, T, C], zeros at padding."""
        if self.sources is None:
            return hidden_states
        return pad(self._real_alone(hidden_states.flatten(0, 1))[None], self.sources, *self.shape)

    def _real_alone(self, moved: Tensor) -> Tensor:
        return moved if self.is_real is None else torch.where(self.is_real[:, None], moved, 0)


def arrange(
    shape: tuple[int, int],
    attention_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    pasts: Sequence[Cache] | None,
) -> Layout:
    """The order in which the layers shall see a batch; their caches are told of padding.

    Args:
        shape: B, T of the new tokens.
        attention_mask: [B, T] or [B, tokens before + T], true or 1 for real tokens; None if all are.
        cu_seqlens: [N + 1], if the batch is one row of packed sequences.
        pasts: the caches that the tokens continue, one for each layer; None without.
    Raises:
        ShapeError: the mask fits neither the new nor all tokens.
        ValueError: padding after real tokens of the same row that a cache holds, or two descriptions of the batch.
    """
    if cu_seqlens is not None:
        if pasts is not None:
            raise ValueError(_ONE_DESCRIPTION)
        if attention_mask is not None:
            require(attention_mask.bool().all(), _ONE_DESCRIPTION)
        return Layout(shape, cu_seqlens=cu_seqlens)
    if attention_mask is None:
        return Layout(shape)
    mask = _new_part(attention_mask, shape, pasts[0].length if pasts else 0)
    if torch.compiler.is_compiling():
        if not pasts:
            return _packed_with_padding(mask, shape)
    elif mask.all():
        return Layout(shape)
    elif not pasts:
        _, cu_seqlens, sources = unpad(mask, mask)
        return Layout(shape, cu_seqlens=cu_seqlens, sources=sources)
    _begin_later(pasts, mask)
    is_real, order = mask.sort(dim=1, stable=True)  # padding first
    return Layout(shape, sources=_flat(order), is_real=is_real.flatten())


def require(condition: Tensor, message: str) -> None:
    """Refuse what the content of a tensor forbids; in a compiled graph, which cannot ask, when it runs.

    Raises:
        ValueError: the condition, one bool, is false. In a compiled graph a RuntimeError with the same message.
    """
    if torch.compiler.is_compiling():
        torch._assert_async(condition, message)
    elif not condition:
        raise ValueError(message)


_ONE_DESCRIPTION = (
    "cu_seqlens excludes attention_mask and a cache (use_cache), and so do its other names: cu_seq_lens_q, "
    "cu_seq_lens_k, seq_idx and position_ids that start again; give one description."
)

_PADDED_AFTER = (
    "attention_mask has padding after real tokens in {}, which continue a cache; it holds one run of tokens a row. Run "
    "those rows alone, or run the whole sequences without a cache."
)


def _flat(order: Tensor) -> Tensor:
    """[B, T] places in rows as [B * T] places in the batch."""
    rows, tokens = order.shape
    return (order + tokens * torch.arange(rows, device=order.device)[:, None]).flatten()


def _packed_with_padding(mask: Tensor, shape: tuple[int, int]) -> Layout:
    """As many tokens as there are, whatever the mask holds: each row's padding is a sequence of its own."""
    is_padding, order = (~mask).sort(dim=1, stable=True)  # padding last
    starts = torch.arange(shape[0], device=mask.device) * shape[1]
    ends = torch.stack([starts + mask.sum(1), starts + shape[1]], 1).flatten()  # of what is real, of its padding
    return Layout(
        shape,
        cu_seqlens=F.pad(ends, (1, 0)),
        sources=_flat(order),
        is_real=~is_padding.flatten(),
    )


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
    if torch.compiler.is_compiling():
        require(~padded_after.any(), _PADDED_AFTER.format("some rows"))
    elif padded_after.any():
        raise ValueError(_PADDED_AFTER.format(f"rows {padded_after.nonzero().squeeze(1).tolist()}"))
    first = torch.where(has_begun, first, before + padding)
    for past in pasts:
        past.first = first
