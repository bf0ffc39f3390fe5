"""DaViT: windows of cells and groups of channels by turns, positions by convolution (arXiv:2204.03645).

    x = x + conv(x);  x = x + attention(norm(x));  x = x + conv(x);  x = x + MLP(norm(x))

Weights of timm's `davit_*` load as they are, the authors' and those of Florence-2's vision tower by their own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from attensor.models.blocks import MLP, ConvolutionalPosition, ResidualBlock, drop_path_rates
from attensor.models.convert import Rule, convert
from attensor.models.vision.backbone import Backbone, ClassifierHead, Stage
from attensor.models.vision.image_model import draw_linear
from attensor.nn._shapes import check_sizes, check_stages
from attensor.nn.dual_attention import DualAttention
from attensor.ops._checks import checked_fields
from attensor.ops._free_sizes import completed, whole

__all__ = ["DaViT", "DaViTConfig"]

_NORM = partial(nn.LayerNorm, eps=1e-5)


@checked_fields
@dataclass(frozen=True)
class DaViTConfig:
    """Sizes of a DaViT.

    Attributes:
        image_size: height and width in pixels; others work as well.
        hidden_sizes: channels of each stage.
        depths: dual blocks, of a spatial and a channel block, of each stage.
        num_heads: heads and groups of each stage.
        window_size: side of a window.
        version: of the channel attention, see `DualAttention`.
        downsample_size: side of the convolution between stages, 2 or 3 (Florence-2).
        in_channels: colours.
        num_classes: logits; 0 gives the pooled features.
        drop_path_rate: stochastic depth of the last block, rising from 0.
    """

    image_size: tuple[int, int] = (224, 224)
    hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (1, 1, 3, 1)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    version: Literal[1, 2] = 1
    downsample_size: int = 2
    in_channels: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what no model can be built of."""
        check_sizes(self, num_classes=0)
        check_stages(self, "hidden_sizes", "depths", "num_heads")


def _sizes(width: int, depths: tuple[int, ...], **options: Any) -> DaViTConfig:
    widths = tuple(width * 2**i for i in range(4))
    return replace(DaViTConfig(hidden_sizes=widths, depths=depths, num_heads=tuple(w // 32 for w in widths)), **options)


_LARGE: dict[str, Any] = {"window_size": 12, "image_size": (384, 384)}
_FLORENCE: dict[str, Any] = {
    "window_size": 12,
    "image_size": (768, 768),
    "version": 2,
    "downsample_size": 3,
    "num_classes": 0,
}


class Stem(nn.Module):
    """Patches of 4 x 4 pixels that overlap, and a norm; keys `conv`, `norm`."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(in_channels, channels, 7, stride=4, padding=3), _NORM(channels)

    def forward(self, images: Tensor) -> Tensor:
        """[B, colours, height, width] to [B, rows, columns, C]; borders that fill no patch are padded with zeros."""
        tiled = completed(images, 2, [whole(side, 4) for side in images.shape[-2:]])
        out: Tensor = self.norm(self.conv(tiled).movedim(1, -1))
        return out


class Downsample(nn.Module):
    """A norm, then a convolution that halves the map; keys `norm`, `conv`."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        self.norm = _NORM(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride=2, padding=size // 2 if size % 2 else 0)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C] to [B, rows / 2, columns / 2, C']; an odd side is padded with zeros."""
        x = self.norm(hidden_states).movedim(-1, 1)
        out: Tensor = self.conv(completed(x, 2, [whole(side, 2) for side in x.shape[-2:]]))
        return out.movedim(1, -1)


class DaViT(Backbone):
    """Image backbone whose channels see the whole map from the first block on, at a cost linear in the pixels.

    Images of any size: stem, stages and windows pad with zeros at the right and at the bottom, as published. The maps
    are at 1/4, 1/8, 1/16 and 1/32.

    Args:
        config: sizes.
    """

    tiny: ClassVar[DaViTConfig] = DaViTConfig(
        image_size=(32, 32), hidden_sizes=(8, 12), depths=(1, 2), num_heads=(2, 3), window_size=3, num_classes=5
    )
    usual: ClassVar[str] = "davit_tiny"
    presets: ClassVar[dict[str, DaViTConfig]] = {
        "davit_tiny": DaViTConfig(),
        "davit_small": _sizes(96, (1, 1, 9, 1), drop_path_rate=0.2),
        "davit_base": _sizes(128, (1, 1, 9, 1), drop_path_rate=0.4),
        "davit_large": _sizes(192, (1, 1, 9, 1), drop_path_rate=0.4, **_LARGE),
        "davit_huge": _sizes(256, (1, 1, 9, 1), drop_path_rate=0.4, **_LARGE),
        "davit_giant": _sizes(384, (1, 1, 12, 3), drop_path_rate=0.4, **_LARGE),
        "davit_base_fl": _sizes(128, (1, 1, 9, 1), **_FLORENCE),
        "davit_huge_fl": _sizes(256, (1, 1, 9, 1), **_FLORENCE),
    }

    def __init__(self, config: DaViTConfig) -> None:
        rates = iter(drop_path_rates(config.drop_path_rate, 2 * sum(config.depths)))
        widths, stages = config.hidden_sizes, []
        for index, (width, depth, heads) in enumerate(zip(widths, config.depths, config.num_heads)):
            duals = [
                nn.Sequential(*(_block(config, width, heads, i, next(rates)) for i in (0, 1))) for _ in range(depth)
            ]
            down = Downsample(widths[index - 1], width, config.downsample_size) if index else None
            stages.append(Stage(duals, downsample=down))
        super().__init__(
            Stem(config.in_channels, widths[0]),
            stages,
            ClassifierHead(widths[-1], config.num_classes, norm=_NORM(widths[-1])),
            channels=widths,
            reductions=[2 ** (i + 2) for i in range(len(widths))],
            in_channels=config.in_channels,
        )
        self.config = config
        self.apply(draw_linear)

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """timm's names; the authors' (`main_blocks.`) and Florence-2's (`window_attn.`) become these."""
        tower = {name: x for name, x in state_dict.items() if name.startswith("vision_tower.")}
        state_dict = weights = tower or state_dict
        for mark, rules in (("main_blocks.", _OFFICIAL), (".window_attn.", _FLORENCE_NAMES)):
            if any(mark in name for name in state_dict):
                weights = convert("DaViT", state_dict, rules)
        # so timm calls the two blocks of Florence-2's models
        kinds = (".spatial_block.", ".0."), (".channel_block.", ".1.")
        return {name.replace(*kinds[0]).replace(*kinds[1]): tensor for name, tensor in weights.items()}


def _block(config: DaViTConfig, width: int, heads: int, index: int, rate: float) -> ResidualBlock:
    return ResidualBlock(
        DualAttention(width, heads, window_size=config.window_size, version=config.version, layer_index=index),
        MLP(width, 4 * width),
        norm=partial(_NORM, width),
        cpe=[ConvolutionalPosition(width), ConvolutionalPosition(width)],
        drop_path=rate,
    )


_OFFICIAL = (
    Rule(r"patch_embeds\.0\.proj\.(.*)", (r"stem.conv.\1",)),
    Rule(r"patch_embeds\.0\.norm\.(.*)", (r"stem.norm.\1",)),
    Rule(r"patch_embeds\.(\d+)\.proj\.(.*)", (r"stages.\1.downsample.conv.\2",)),
    Rule(r"patch_embeds\.(\d+)\.norm\.(.*)", (r"stages.\1.downsample.norm.\2",)),
    Rule(r"main_blocks\.(\d+)\.(\d+)\.([01])\.cpe\.0\.(.*)", (r"stages.\1.blocks.\2.\3.cpe1.\4",)),
    Rule(r"main_blocks\.(\d+)\.(\d+)\.([01])\.cpe\.1\.(.*)", (r"stages.\1.blocks.\2.\3.cpe2.\4",)),
    Rule(r"main_blocks\.(.*?)\.(.*)", (r"stages.\1.blocks.\2",)),
    Rule(r"norms\.(.*)", (r"head.norm.\1",)),
    Rule(r"head\.(weight|bias)", (r"head.fc.\1",)),
)


def _florence() -> tuple[Rule, ...]:
    block = r"(?:vision_tower\.)?blocks\.(\d+)\.(\d+)\."
    rules = [
        Rule(r"(?:vision_tower\.)?convs\.0\.proj\.(.*)", (r"stem.conv.\1",)),
        Rule(r"(?:vision_tower\.)?convs\.0\.norm\.(.*)", (r"stem.norm.\1",)),
        Rule(r"(?:vision_tower\.)?convs\.(\d+)\.proj\.(.*)", (r"stages.\1.downsample.conv.\2",)),
        Rule(r"(?:vision_tower\.)?convs\.(\d+)\.norm\.(.*)", (r"stages.\1.downsample.norm.\2",)),
    ]
    parts = {"norm": "norm1", "fn": "attn"}
    for place, kind, attention in ((0, "spatial_block", "window_attn"), (1, "channel_block", "channel_attn")):
        new = rf"stages.\1.blocks.\2.{place}."
        rules += [
            Rule(rf"{block}{kind}\.{attention}\.{old}\.(.*)", (rf"{new}{name}.\3",)) for old, name in parts.items()
        ]
        rules += [
            Rule(rf"{block}{kind}\.ffn\.norm\.(.*)", (rf"{new}norm2.\3",)),
            Rule(rf"{block}{kind}\.ffn\.fn\.net\.(.*)", (rf"{new}mlp.\3",)),
            Rule(rf"{block}{kind}\.conv1\.fn\.dw\.(.*)", (rf"{new}cpe1.proj.\3",)),
            Rule(rf"{block}{kind}\.conv2\.fn\.dw\.(.*)", (rf"{new}cpe2.proj.\3",)),
        ]
    return tuple(rules)


_FLORENCE_NAMES = _florence()
