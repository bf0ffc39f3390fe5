"""The checked arguments of one neighbourhood attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """Arguments of `neighborhood_attention`, by the same names."""

    q: Tensor
    k: Tensor
    v: Tensor
    window_size: int | tuple[int, ...]
    dilation: int | tuple[int, ...]
    stride: int | tuple[int, ...]
    is_causal: bool | tuple[bool, ...]
    scale: float | None
    relative_bias: Tensor | None
    additional_keys: Tensor | None
    additional_values: Tensor | None
    return_lse: bool
    cu_seqlens: Tensor | None
