"""The inverted bottleneck of MaxViT: a wide depthwise convolution with squeeze and excitation, norms before it."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from attensor.models.blocks import ACTIVATIONS, DropPath
from attensor.ops._free_sizes import completed, whole

__all__ = ["BatchNorm", "MBConv", "SameConv", "SqueezeExcite", "pad_same"]

BatchNorm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)  # TensorFlow's momentum of 0.99


def pad_same(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """[B, C, height, width] with zeros around it, so that ceil(side / stride) places remain: TensorFlow's "same".

    An even side with kernel 3 and stride 2 gets none at its beginning and one at its end.
    """
    sizes = [whole(side, stride) - stride + kernel_size for side in x.shape[-2:]]
    if kernel_size < stride:  # and then alone they can be too small
        sizes = [max(size, side) for size, side in zip(sizes, x.shape[-2:])]
    return completed(x, 2, sizes, [(size - side) // 2 for size, side in zip(sizes, x.shape[-2:])])


class SameConv(nn.Conv2d):
    """A square convolution with "same" padding; takes and returns [B, C, height, width]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, height, width] to [B, C', ceil(height / stride), ceil(width / stride)]."""
        kernel_size, stride = self.kernel_size[0], self.stride[0]
        if stride == 1 and kernel_size % 2:
            return F.conv2d(x, self.weight, self.bias, padding=kernel_size // 2, groups=self.groups)
        return F.conv2d(pad_same(x, kernel_size, stride), self.weight, self.bias, stride, groups=self.groups)


class SqueezeExcite(nn.Module):
    """A factor for each channel from the mean over the cells; keys `fc1`, `fc2` (arXiv:1709.01507).

    Args:
        channels: C.
        inside: channels between the two layers.
        activation: between them, a name of `ACTIVATIONS`.
    """

    def __init__(self, channels: int, inside: int, *, activation: str = "silu") -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, inside, 1), nn.Conv2d(inside, channels, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, height, width] to the same."""
        factors: Tensor = self.fc2(ACTIVATIONS[self.activation](self.fc1(x.mean((2, 3), keepdim=True))))
        return x * factors.sigmoid()


class Shortcut(nn.Module):
    """What MBConv adds to: the input, halved by a mean and widened by a 1 x 1 convolution, key `expand`, if it must."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.expand = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, height, width] to [B, C', height / stride, width / stride]."""
        pooled = F.avg_pool2d(pad_same(x, self.stride, self.stride), self.stride) if self.stride > 1 else x
        out: Tensor = self.expand(pooled)
        return out


class MBConv(nn.Module):
    """`shortcut(x) + conv(se(act(norm(depthwise(act(norm(conv(norm(x)))))))))`, 4 times as wide inside as its output.

    Keys as timm's: `shortcut.expand`, `pre_norm`, `conv1_1x1`, `norm1`, `conv2_kxk`, `norm2`, `se.{fc1,fc2}`,
    `conv3_1x1`. Cost 4 C C' + 36 C' / stride^2 + 4 C'^2 / stride^2 multiplications a cell of the input.

    Args:
        in_channels, out_channels: C and C'.
        stride: 1, or 2 to halve the map.
        drop_path: rate of stochastic depth.
    Source: arXiv:2204.01697, section 3.3 and appendix; squeeze to a quarter of C', not of what is inside.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, drop_path: float = 0.0) -> None:
        super().__init__()
        inside = 4 * out_channels
        self.shortcut = Shortcut(in_channels, out_channels, stride)
        self.pre_norm = BatchNorm(in_channels)
        self.conv1_1x1 = nn.Conv2d(in_channels, inside, 1, bias=False)
        self.norm1 = BatchNorm(inside)
        self.conv2_kxk = SameConv(inside, inside, 3, stride=stride, groups=inside, bias=False)
        self.norm2 = BatchNorm(inside)
        self.se = SqueezeExcite(inside, max(1, out_channels // 4))
        self.conv3_1x1 = nn.Conv2d(inside, out_channels, 1)
        self.drop_path = DropPath(drop_path)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C] to [B, rows / stride, columns / stride, C']."""
        x = hidden_states.movedim(-1, 1)
        activation = ACTIVATIONS["gelu_tanh"]
        branch = activation(self.norm1(self.conv1_1x1(self.pre_norm(x))))
        branch = self.se(activation(self.norm2(self.conv2_kxk(branch))))
        out: Tensor = self.shortcut(x) + self.drop_path(self.conv3_1x1(branch))
        return out.movedim(1, -1)
