"""Other people's attention: what more than one benchmark needs of it, and how it is called."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["FLEX_HAS_NO_BACKWARD", "causal_blocks", "natten_na2d"]

FLEX_HAS_NO_BACKWARD = "FlexAttention has no backward pass on a CPU"


def natten_na2d() -> Callable[..., Tensor] | None:
    """NATTEN's `na2d(q, k, v, kernel_size=...)`, forward only on a CPU; None when absent."""
    if importlib.util.find_spec("natten") is None:
        return None
    natten = importlib.import_module("natten")

    def na2d(*tensors: Tensor, **options: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FlexAttention's advice to compile, which NATTEN itself forbids on a CPU
            out: Tensor = natten.na2d(*tensors, **options)
            return out

    return na2d


def causal_blocks(length: int, device: str = "cpu") -> BlockMask:
    """FlexAttention's causal mask by blocks of 128, without the T x T mask that `create_block_mask` goes through."""
    from torch.nn.attention.flex_attention import BlockMask

    count = -(-length // 128)
    block = torch.arange(count, dtype=torch.int32, device=device)
    diagonal_first = ((block[:, None] + block) % count).to(torch.int32)[None, None].contiguous()
    return BlockMask.from_kv_blocks(
        torch.ones_like(block)[None, None],
        diagonal_first,
        block[None, None].contiguous(),  # whole blocks before the diagonal one
        block.expand(count, count)[None, None].contiguous(),
        BLOCK_SIZE=128,
        mask_mod=lambda batch, head, i, j: i >= j,
        seq_lengths=(length, length),
    )
