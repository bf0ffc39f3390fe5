"""From padded rows to one packed row, and back.

Padding must not be masked afterwards: gates would still decay a recurrent state, and keys would still be attended.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.errors import ShapeError
from attensor.nn._shapes import check_range
from attensor.ops._checks import check_devices, check_integers, checked, is_readable

__all__ = ["bounds_of_padding", "pad", "unpad"]


@checked
def unpad(x: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the real tokens of each row, one row after the other.

    Args:
        x: [B, T, ...].
        attention_mask: [B, T], true or 1 for real tokens; padding may be left, right or in between.
    Returns:
        packed [1, real tokens, ...]; cu_seqlens [B + 1], int64; index [real tokens], where each came from in B * T.
    Raises:
        ShapeError: the mask is not [B, T].
        TypeError, ValueError: a mask of complex numbers, or on another device.
    """
    if attention_mask.is_complex():
        raise TypeError(f"unpad: attention_mask must be true or 1 for real tokens, got {attention_mask.dtype}.")
    check_devices("unpad", x, "x", attention_mask=attention_mask)
    if x.ndim < 2 or attention_mask.shape != x.shape[:2]:
        raise ShapeError(
            f"unpad: attention_mask must be {list(x.shape[:2])}, got {list(attention_mask.shape)}; "
            "it has one entry for each token of x [B, T, ...]."
        )
    mask = attention_mask.bool()
    index = mask.flatten().nonzero().squeeze(1)
    lengths = mask.sum(1)
    cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return x.flatten(0, 1)[index][None], cu_seqlens, index


@checked
def pad(packed: Tensor, index: Tensor, batch_size: int, length: int) -> Tensor:
    """Undo `unpad`; padded places get zeros.

    Args:
        packed: [1, real tokens, ...].
        index: [real tokens], as returned by `unpad`.
        batch_size: B.
        length: T.
    Returns:
        [B, T, ...].
    Raises:
        ShapeError: packed is not [1, real tokens, ...], or index not [real tokens].
        TypeError, ValueError: index is not of integers, or a size is negative. On a CPU also: an index outside B * T.
    """
    check_integers("pad", "index", index, packed, "packed")
    check_range("pad", 0, batch_size=batch_size, length=length)
    if packed.ndim < 2 or packed.shape[0] != 1 or index.shape != packed.shape[1:2]:
        raise ShapeError(
            f"pad: packed and index must be [1, real tokens, ...] and [real tokens], got {list(packed.shape)} and "
            f"{list(index.shape)}; use what unpad returned."
        )
    if index.numel() and is_readable(index):
        check_range("pad", 0, batch_size * length, index=(int(index.min()), int(index.max())))
    if packed.is_floating_point() and packed.itemsize == 1:  # torch copies their bits, and not them
        return pad(packed.view(torch.uint8), index, batch_size, length).view(packed.dtype)
    flat = packed.new_zeros(batch_size * length, *packed.shape[2:])
    return torch.unflatten(flat.index_copy(0, index.long(), packed[0]), 0, (batch_size, length))


def bounds_of_padding(real: Tensor) -> Tensor:
    """Boundaries that keep rows apart which are laid one after the other, and the padding at their beginning too.

    Nothing is moved, and no size depends on how much is padding: a graph can serve every batch.

    Args:
        real: [B, T], bool, true from the first real token of a row on.
    Returns:
        [2 B + 1], int64: the sequences are the padding of the first row, its real tokens, and so on.
    """
    rows, tokens = real.shape
    ends = torch.arange(1, rows + 1, device=real.device) * tokens
    return F.pad(torch.stack([ends - real.sum(1), ends], 1).flatten(), (1, 0))
