"""Short causal convolutions, each channel by itself, as recurrent layers put before their recurrence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ShortConvolution", "convolved"]


class ShortConvolution(nn.Module):
    """Weights of a causal convolution of each channel with its last tokens; `convolved` applies them.

    Keys and sizes of the state_dict are those of `nn.Conv1d(channels, channels, size, groups=channels)`, so that fla's
    load.

    Args:
        channels: D.
        size: tokens W that are read, the current one included.
        bias: also add a number to each channel.
        device, dtype: of the parameters.
    """

    def __init__(self, channels: int, size: int, *, bias: bool = False, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, size, **factory))
        self.bias = nn.Parameter(torch.empty(channels, **factory)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.reset_own_parameters()

    def reset_own_parameters(self) -> None:
        """Draw them uniformly within 1 / sqrt(W), as `nn.Conv1d` does."""
        bound = self.weight.shape[-1] ** -0.5
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound)

    def extra_repr(self) -> str:
        """Sizes, for `print(layer)`."""
        return f"{self.weight.shape[0]}, size={self.weight.shape[-1]}, bias={self.bias is not None}"


def convolved(x: Tensor, past: Tensor, layers: tuple[ShortConvolution, ...], place: Tensor | None) -> Tensor:
    """Channels side by side through one convolution after the other: `out_t = sum_j weight_j x_{t - W + 1 + j}`.

    Args:
        x: [B, T, D], the channels of all layers.
        past: [B, W - 1, D], what came before.
        layers: all of one size W.
        place: [T], of packed tokens in their sequences, which see no token before their first; None: one sequence.
    Returns:
        [B, T, D] in x's dtype.
    """
    weight = torch.cat([layer.weight[:, 0] for layer in layers]).to(x.dtype)
    tokens, reach = x.shape[1], weight.shape[1] - 1
    read, out = torch.cat([past, x], 1), x * weight[:, reach]
    for back in range(1, reach + 1):
        earlier = read[:, reach - back : reach - back + tokens]
        if place is not None:
            earlier = torch.where((place >= back)[:, None], earlier, 0.0)
        out = torch.addcmul(out, earlier, weight[:, reach - back])
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    return out + torch.cat(biases).to(x.dtype) if biases else out
