"""L2ViT: softmax attention in windows and linear attention over the whole map by turns (arXiv:2501.16182).

    x = x + conv(x);  x = x + windows(norm(x));  x = x + conv(x);         x = x + MLP(norm(x))
    x = x + conv(x);  x = x + linear(norm(x));   x = x + local(norm(x));  x = x + MLP(norm(x))

with local the two convolutions that gather what linear attention has spread. Weights of the releases load by their own
names; there are no position tables, so that any size and window takes the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from attensor.models.blocks import MLP, ConvolutionalPosition, ResidualBlock, drop_path_rates
from attensor.models.convert import Rule, convert
from attensor.models.vision.backbone import Backbone, ClassifierHead, Stage
from attensor.models.vision.davit import Downsample
from attensor.models.vision.image_model import draw_layer
from attensor.nn._shapes import check_sizes, check_stages
from attensor.nn.l2vit import GlobalLinearAttention, LocalConcentration
from attensor.nn.window_grid import WindowGridAttention
from attensor.ops._checks import checked_fields
from attensor.ops._free_sizes import completed, whole

__all__ = ["L2ViT", "L2ViTConfig"]

_NORM = partial(nn.LayerNorm, eps=1e-5)


@checked_fields
@dataclass(frozen=True)
class L2ViTConfig:
    """Sizes of an L2ViT.

    Attributes:
        image_size: height and width in pixels; others work as well.
        hidden_sizes: channels of each stage.
        depths: blocks of each stage; those with an even index, from 0, attend in windows, the others to the whole map.
        num_heads: heads of each stage.
        window_size: side of a window.
        denominator_minimum: of the linear attention, see `GlobalLinearAttention`; 100 is published, for maps of
            thousands of cells.
        in_channels: colours.
        num_classes: logits; 0 gives the pooled features.
        drop_path_rate: stochastic depth of the last block, rising from 0.
    """

    image_size: tuple[int, int] = (224, 224)
    hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    denominator_minimum: float = 100.0
    in_channels: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no model can be built of."""
        check_sizes(self, num_classes=0)
        check_stages(self, "hidden_sizes", "depths", "num_heads")


_BASE = L2ViTConfig(hidden_sizes=(128, 256, 512, 1024), depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))


class Stem(nn.Module):
    """Two convolutions of 3 x 3 that halve the image, and a norm; keys `proj.{0,1,3,4}`, `norm`."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        inside = channels // 2
        self.proj = nn.Sequential(
            nn.Conv2d(in_channels, inside, 3, stride=2, padding=1),
            nn.BatchNorm2d(inside),
            nn.ReLU(),
            nn.Conv2d(inside, channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(channels),
        )
        self.norm = _NORM(channels)

    def forward(self, images: Tensor) -> Tensor:
        """[B, colours, height, width] to [B, rows, columns, C]; sides are padded with zeros to multiples of 4."""
        tiled = completed(images, 2, [whole(side, 4) for side in images.shape[-2:]])
        out: Tensor = self.norm(self.proj(tiled).movedim(1, -1))
        return out


class L2ViT(Backbone):
    """Image backbone whose every second block sees the whole map, at a cost linear in the pixels.

    Images of any size: stem, stages and windows pad with zeros at the right and at the bottom, as published. The maps
    are at 1/4, 1/8, 1/16 and 1/32. An attention over n cells costs 4 n P^2 C operations in windows of P x P, and
    4 n C^2 / heads over the whole map, with 196 n C for the convolutions that follow.

    Args:
        config: sizes.
    """

    tiny: ClassVar[L2ViTConfig] = L2ViTConfig(
        image_size=(32, 32),
        hidden_sizes=(24, 30),
        depths=(2, 2),
        num_heads=(2, 3),
        window_size=3,
        denominator_minimum=1.0,
        num_classes=5,
    )
    usual: ClassVar[str] = "l2vit_tiny"
    presets: ClassVar[dict[str, L2ViTConfig]] = {
        "l2vit_tiny": L2ViTConfig(),
        "l2vit_small": L2ViTConfig(depths=(2, 2, 18, 2)),
        "l2vit_base": replace(_BASE, drop_path_rate=0.3),
        "l2vit_base_384": replace(_BASE, image_size=(384, 384), window_size=12, drop_path_rate=0.2),
    }

    def __init__(self, config: L2ViTConfig) -> None:
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        widths, stages = config.hidden_sizes, []
        for index, (width, depth, heads) in enumerate(zip(widths, config.depths, config.num_heads)):
            blocks = [_block(config, width, heads, i, next(rates)) for i in range(depth)]
            stages.append(Stage(blocks, downsample=Downsample(widths[index - 1], width, 2) if index else None))
        super().__init__(
            Stem(config.in_channels, widths[0]),
            stages,
            ClassifierHead(widths[-1], config.num_classes),
            channels=widths,
            reductions=[2 ** (i + 2) for i in range(len(widths))],
            in_channels=config.in_channels,
            norm=_NORM(widths[-1]),
        )
        self.config = config
        self.apply(draw_layer)

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours as they are; the releases' names (`downsample_layers.`) become ours."""
        if any(name.startswith("downsample_layers.") for name in state_dict):
            return convert("L2ViT", state_dict, _RELEASED)
        return dict(state_dict)


def _block(config: L2ViTConfig, width: int, heads: int, index: int, rate: float) -> ResidualBlock:
    """Windows for an even index, with a second convolution for positions; else the whole map."""
    body = partial(ResidualBlock, mlp=MLP(width, 4 * width), norm=partial(_NORM, width), drop_path=rate)
    if index % 2 == 0:
        windows = WindowGridAttention(
            width, heads, block_size=config.window_size, pattern="window", relative_bias=False, padding="visible"
        )
        return body(windows, cpe=[ConvolutionalPosition(width), ConvolutionalPosition(width)])
    whole = GlobalLinearAttention(width, heads, denominator_minimum=config.denominator_minimum)
    return body(whole, cpe=[ConvolutionalPosition(width)], after_mixer=LocalConcentration(width))


_RELEASED = (
    Rule(r"downsample_layers\.0\.proj\.(proj\..*)", (r"stem.\1",)),
    Rule(r"downsample_layers\.0\.(norm\..*)", (r"stem.\1",)),
    Rule(r"downsample_layers\.(\d+)\.proj\.(.*)", (r"stages.\1.downsample.conv.\2",)),
    Rule(r"downsample_layers\.(\d+)\.(norm\..*)", (r"stages.\1.downsample.\2",)),
    Rule(r"stages\.(\d+)\.(\d+)\.cpe\.0\.(.*)", (r"stages.\1.blocks.\2.cpe1.\3",)),
    Rule(r"stages\.(\d+)\.(\d+)\.cpe\.1\.(.*)", (r"stages.\1.blocks.\2.cpe2.\3",)),
    Rule(r"stages\.(\d+)\.(\d+)\.(.*)", (r"stages.\1.blocks.\2.\3",)),
    Rule(r"(norm\..*)", (r"\1",)),
    Rule(r"head\.(weight|bias)", (r"head.fc.\1",)),
)
