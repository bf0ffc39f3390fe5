"""Heads first as the fused kernel takes them: grouped heads without copies of their keys and values.

R query heads share a key/value head. Few queries become R times as many rows of one head, which are then one matrix
product; for many, the key/value head is repeated by a stride of 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Fold", "with_unit_stride"]

_FEW = 16  # queries whose mask may be repeated for the R heads of a group


class Fold:
    """Conversions between [B, T, H, D] and what the kernel takes.

    Args:
        q: [B, Tq, H, K].
        k: [B, Tk, Hkv, K].
        is_causal: the kernel masks by row and key.
        is_masked: there is a mask.
    """

    def __init__(self, q: Tensor, k: Tensor, *, is_causal: bool, is_masked: bool) -> None:
        self.batch, self.queries, self.heads = q.shape[:3]
        self.kv_heads = k.shape[2]
        self.group = self.heads // self.kv_heads
        self.by_rows = self.group > 1 and not is_causal and (not is_masked or self.queries <= _FEW)
        self.by_heads = self.group > 1 and not self.by_rows

    def of_queries(self, x: Tensor) -> Tensor:
        """[B, Tq, H, D] -> [B, Hkv, R Tq, D], or [B Hkv, R, Tq, D]."""
        x = x.transpose(1, 2)
        if self.by_rows:
            return x.reshape(self.batch, self.kv_heads, self.group * self.queries, x.shape[-1])
        return x.reshape(-1, self.group, *x.shape[2:]) if self.by_heads else x

    def of_keys(self, x: Tensor) -> Tensor:
        """[B, Tk, Hkv, D] -> [B, Hkv, Tk, D], or [B Hkv, R, Tk, D] with a stride of 0."""
        x = x.transpose(1, 2)
        return x.reshape(-1, 1, *x.shape[2:]).expand(-1, self.group, -1, -1) if self.by_heads else x

    def of_mask(self, mask: Tensor) -> Tensor:
        """[B or 1, H or 1, Tq or 1, Tk or 1] -> as the scores of folded queries, or broadcasting to them."""
        if self.by_rows and mask.shape[1:3] != (1, 1):
            heads = self.group if mask.shape[1] == 1 else self.heads
            mask = mask.expand(-1, heads, self.queries, -1)
            return mask.reshape(mask.shape[0], heads // self.group, -1, mask.shape[-1])
        if self.by_heads and mask.shape[:2] != (1, 1):
            return mask.expand(self.batch, self.heads, -1, -1).reshape(-1, self.group, *mask.shape[2:])
        return mask

    def rows(self, x: Tensor) -> Tensor:
        """The inverse of `of_queries` for x [.., D]: [B, Tq, H, D], contiguous."""
        return x.reshape(self.batch, self.heads, self.queries, x.shape[-1]).transpose(1, 2).contiguous()

    def sum_keys(self, x: Tensor) -> Tensor:
        """The adjoint of `of_keys`: [B, Tk, Hkv, D], contiguous."""
        if self.by_heads:
            x = x.sum(1).view(self.batch, self.kv_heads, *x.shape[2:])
        return x.transpose(1, 2).contiguous()


def with_unit_stride(x: Tensor) -> Tensor:
    """x, copied if its last dimension is not contiguous: the kernel assumes that it is."""
    return x if x.stride(-1) == 1 else x.clone(memory_format=torch.contiguous_format)
