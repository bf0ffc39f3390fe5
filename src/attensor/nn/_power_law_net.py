"""The net that makes a power-law operator's tensor: residual units of gated layers on the rows of a D x D matrix.

Parameters are plain, not linear layers: what is made of a sequence once is small, and its rounding grows by a power.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["EPSILON", "ResidualUnit", "normed"]

EPSILON = 1e-6  # of every norm


def normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """A layer norm in the dtype of x."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


class GatedLayer(nn.Module):
    """`down(silu(gate(x)) * up(x))`, with biases, on the last of [..., D]; in the dtype of x.

    Args:
        width: D.
        inner_size: channels inside.
        made: device and dtype of the parameters.
    """

    def __init__(self, width: int, inner_size: int, **made: Any) -> None:
        super().__init__()
        for name, (rows, columns) in {
            "gate": (inner_size, width),
            "up": (inner_size, width),
            "down": (width, inner_size),
        }.items():
            self.register_parameter(f"{name}_weight", nn.Parameter(torch.empty(rows, columns, **made)))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(rows, **made)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all anew: weights uniform by Xavier's rule, biases 0."""
        self.reset_own_parameters()

    @torch.no_grad()
    def reset_own_parameters(self) -> None:
        """As `reset_parameters`."""
        for parameter in self.parameters(recurse=False):
            if parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to the same."""
        inside = F.silu(self._linear("gate", x)) * self._linear("up", x)
        return self._linear("down", inside)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.get_parameter(f"{name}_weight"), self.get_parameter(f"{name}_bias")
        return F.linear(x, weight.to(x.dtype), bias.to(x.dtype))


class ResidualUnit(nn.Module):
    """`norm(x + gated(.. gated(x)))`: `depth` gated layers in series."""

    def __init__(self, width: int, inner_size: int, depth: int, **made: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GatedLayer(width, inner_size, **made) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPSILON, **made)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to the same."""
        inside = x
        for layer in self.layers:
            inside = layer(inside)
        return normed(self.norm, x + inside)
