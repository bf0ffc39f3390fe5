"""Parts of residual networks by timm's names: stem, stages, and the bottleneck around a convolution or attention.

    y = activation(norm(conv1(x)))
    y = gate(activation(norm(conv2(y))))   or   activation(norm(attention(y)))
    x = activation(shortcut(x) + norm(conv3(y)))

Everything here maps [B, rows, columns, C] to the same layout, but for the gates, which take [B, C, rows, columns].
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from attensor.models.blocks import ACTIVATIONS, DropPath
from attensor.models.vision.image_model import run
from attensor.models.vision.mbconv import SqueezeExcite
from attensor.nn.halo import HaloAttention

__all__ = ["GATES", "Blocks", "Bottleneck", "ChannelGate", "ConvNorm", "Pool", "Stem"]


def _activated(x: Tensor, activation: str) -> Tensor:
    """An activation of what nobody else reads, written over it where the derivative needs the result alone."""
    return F.relu_(x) if activation == "relu" else ACTIVATIONS[activation](x)


class ConvNorm(nn.Module):
    """A convolution that keeps the map's size but for its stride, a norm over the batch, an activation.

    Keys `conv`, `bn`.

    Args:
        in_channels, out_channels: C and C'.
        kernel_size: side of the convolution, odd.
        stride: keep every so many-th row and column.
        groups: of channels that do not see each other.
        activation: a name of `ACTIVATIONS`; none if None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.activation = activation

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C] to [B, ceil(rows / stride), ceil(columns / stride), C']."""
        out: Tensor = self.bn(self.conv(hidden_states.movedim(-1, 1)))
        return (out if self.activation is None else _activated(out, self.activation)).movedim(1, -1)


class Stem(nn.Sequential):
    """Convolutions of images [B, colours, height, width]: [B, rows, columns, C]."""

    def forward(self, images: Tensor) -> Tensor:
        """The first map."""
        hidden_states = images.movedim(1, -1)
        for convolution in self:
            hidden_states = convolution(hidden_states)
        return hidden_states


class Pool(nn.MaxPool2d):
    """The largest of 3 x 3 cells at every second row and column of [B, rows, columns, C]."""

    def __init__(self) -> None:
        super().__init__(3, stride=2, padding=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C] to [B, ceil(rows / 2), ceil(columns / 2), C]."""
        out: Tensor = super().forward(hidden_states.movedim(-1, 1))
        return out.movedim(1, -1)


class Blocks(nn.Sequential):
    """A stage whose blocks have the keys `0`, `1`, .., and what comes before and after them keys of its own."""

    grad_checkpointing = False

    def forward(self, hidden_states: Tensor) -> Tensor:
        """One after the other."""
        for part in self:
            hidden_states = run(part, hidden_states, self.grad_checkpointing)
        return hidden_states


class ChannelGate(nn.Module):
    """A factor for each channel from the means of the channels beside it; key `conv` (ECA, arXiv:1910.03151)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reach = max(3, int((math.log2(channels) + 1) / 2) | 1)
        self.conv = nn.Conv1d(1, 1, reach, padding=reach // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, rows, columns] to the same."""
        factors: Tensor = self.conv(x.mean((2, 3))[:, None])[:, 0, :, None, None]
        return x * factors.sigmoid()


def _squeeze(channels: int) -> nn.Module:
    """To a sixteenth, rounded to a multiple of 8 and no fewer than 8."""
    return SqueezeExcite(channels, 8 * max(1, (channels + 64) // 128), activation="relu")


# what may follow the convolution in the middle
GATES: dict[str, Callable[[int], nn.Module]] = {"se": _squeeze, "eca": ChannelGate}


class Bottleneck(nn.Module):
    """A narrow middle between two convolutions of 1 x 1, and a shortcut around them.

    Keys: `shortcut`, `conv1_1x1`, `conv2_kxk` and `attn` (the gate) or `self_attn` and `post_attn` (its norm),
    `conv3_1x1`.

    Args:
        in_channels, out_channels: C and C'.
        inner: channels of the middle.
        attention: in the middle, of `inner` channels and the same stride, without a projection; a convolution of 3 x 3
            if None.
        stride: 2 halves the map.
        groups: of that convolution.
        gate: a name of `GATES`, after that convolution.
        activation: a name of `ACTIVATIONS`.
        drop_path: rate of stochastic depth.
    Source: arXiv:1512.03385, section 4.1; with attention: arXiv:2103.12731, section 3.2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        inner: int,
        *,
        attention: HaloAttention | None = None,
        stride: int = 1,
        groups: int = 1,
        gate: str | None = None,
        activation: str = "relu",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        is_same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if is_same else ConvNorm(in_channels, out_channels, stride=stride)
        self.conv1_1x1 = ConvNorm(in_channels, inner, activation=activation)
        self.self_attn, middle = attention, inner
        if attention is None:
            self.conv2_kxk = ConvNorm(inner, inner, 3, stride=stride, groups=groups, activation=activation)
            self.attn = nn.Identity() if gate is None else GATES[gate](inner)
        else:
            middle = attention.num_heads * attention.head_dim
            self.post_attn = nn.BatchNorm2d(middle)
        self.conv3_1x1 = ConvNorm(middle, out_channels)
        self.drop_path = DropPath(drop_path)
        self.activation = activation

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C] to [B, ceil(rows / stride), ceil(columns / stride), C']."""
        inside = self.conv1_1x1(hidden_states)
        if self.self_attn is None:
            inside = self.attn(self.conv2_kxk(inside).movedim(-1, 1)).movedim(1, -1)
        else:
            # in memory as the map came: convolutions and norms are slow where two layouts meet
            is_channels_last, mixed = inside.is_contiguous(), self.self_attn(inside).movedim(-1, 1)
            normed = self.post_attn(mixed if is_channels_last else mixed.contiguous())
            inside = _activated(normed, self.activation).movedim(1, -1)
        return _activated(self.shortcut(hidden_states) + self.drop_path(self.conv3_1x1(inside)), self.activation)
