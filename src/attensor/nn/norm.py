"""Norms of what attention returns, in at least float32 whatever their weights are stored in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LayerNorm", "RMSNorm", "add_qk_norm", "qk_normed"]


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


def add_qk_norm(layer: nn.Module, head_dim: int, **made: Any) -> None:
    """Give a layer a norm of each query and one of each key, named as Qwen3's: `q_norm`, `k_norm`."""
    layer.q_norm, layer.k_norm = (RMSNorm(head_dim, eps=1e-6, **made) for _ in range(2))


def qk_normed(layer: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys [.., heads, D] by the norms of a layer, in their own dtype; as they are where it has none."""
    if not hasattr(layer, "q_norm"):
        return q, k
    norms: Any = layer
    return norms.q_norm(q).to(q.dtype), norms.k_norm(k).to(k.dtype)
