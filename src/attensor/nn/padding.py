"""From padded rows to one packed row, and back.

Padding must not be masked afterwards: gates would still decay a recurrent state, and keys would still be attended.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.errors import ShapeError

__all__ = ["pad", "unpad"]


def unpad(x: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the real tokens of each row, one row after the other.

    Args:
        x: [B, T, ...].
        attention_mask: [B, T], true or 1 for real tokens; padding may be left, right or in between.
    Returns:
        packed [1, real tokens, ...]; cu_seqlens [B + 1], int64; index [real tokens], where each came from in B * T.
    Raises:
        ShapeError: the mask is not [B, T].
    """
    if attention_mask.shape != x.shape[:2]:
        raise ShapeError(f"unpad: attention_mask must be {list(x.shape[:2])}, got {list(attention_mask.shape)}.")
    mask = attention_mask.bool()
    index = mask.flatten().nonzero().squeeze(1)
    lengths = mask.sum(1)
    cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return x.flatten(0, 1)[index][None], cu_seqlens, index


def pad(packed: Tensor, index: Tensor, batch_size: int, length: int) -> Tensor:
    """Undo `unpad`; padded places get zeros.

    Args:
        packed: [1, real tokens, ...].
        index: [real tokens], as returned by `unpad`.
        batch_size: B.
        length: T.
    Returns:
        [B, T, ...].
    """
    flat = packed.new_zeros(batch_size * length, *packed.shape[2:])
    return torch.unflatten(flat.index_copy(0, index, packed[0]), 0, (batch_size, length))
