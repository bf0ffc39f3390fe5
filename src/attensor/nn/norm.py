"""Norms of what attention returns, in at least float32 whatever their weights are stored in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LayerNorm", "RMSNorm"]


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm`, computed and returned in at least float32: the squares of half-precision numbers overflow.

    Arguments, parameters and keys of the state_dict are torch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same, in at least float32."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight = None if self.weight is None else self.weight.to(dtype)
        return F.rms_norm(x.to(dtype), self.normalized_shape, weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` without weights, computed and returned in at least float32.

    Args:
        width: channels of the last dimension.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same, in at least float32."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.layer_norm(x.to(dtype), self.normalized_shape, None, None, self.eps)
