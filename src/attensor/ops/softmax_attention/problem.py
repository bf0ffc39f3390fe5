"""The checked arguments of one softmax attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """Arguments of `softmax_attention`, by the same names."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    is_causal: bool
    attn_mask: Tensor | None
    dropout_p: float
    cu_seqlens: Tensor | None
    return_lse: bool
    generator: torch.Generator | None
