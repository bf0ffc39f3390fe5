"""MaxViT: convolution, attention in windows and attention on a grid by turns (arXiv:2204.01697).

    x = MBConv(x)
    x = x + attention(norm(x)) in windows;   x = x + MLP(norm(x))
    x = x + attention(norm(x)) on the grid;  x = x + MLP(norm(x))

Weights of timm's `maxvit_*_tf_*` load as they are, and the variables of the authors' checkpoints by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from attensor.models.blocks import ACTIVATIONS, MLP, ResidualBlock
from attensor.models.vision.backbone import Backbone, ClassifierHead, Stage
from attensor.models.vision.maxvit_names import from_tensorflow
from attensor.models.vision.mbconv import BatchNorm, MBConv, SameConv
from attensor.nn._shapes import check_sizes, check_stages
from attensor.nn.window_grid import WindowGridAttention, resized
from attensor.ops._checks import checked_fields

__all__ = ["MaxViT", "MaxViTConfig"]

_HEAD_DIM = 32
_REDUCTION = 32  # pixels to a cell of the last map


@checked_fields
@dataclass(frozen=True)
class MaxViTConfig:
    """Sizes of a MaxViT.

    Attributes:
        image_size: height and width in pixels for which windows are chosen; other sizes work, see `block_size`.
        stem_size: channels of the stem.
        hidden_sizes: channels of each stage.
        depths: blocks of each stage.
        block_size: side of a window and of the grid; None: the smaller side of the image / 32, so that both tile every
            map. Maps that they do not tile are padded with cells that nobody sees.
        in_channels: colours.
        num_classes: logits; 0 gives the pooled features.
        head_dim: channels of a head.
        drop_path_rate: stochastic depth, rising by equal steps that would reach it after the last block.
    """

    image_size: tuple[int, int] = (224, 224)
    stem_size: int = 64
    hidden_sizes: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 5, 2)
    block_size: int | None = None
    in_channels: int = 3
    num_classes: int = 1000
    head_dim: int = _HEAD_DIM
    drop_path_rate: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what no model can be built of."""
        check_sizes(self, num_classes=0)
        check_stages(self, "hidden_sizes", "depths")
        if odd := [width for width in self.hidden_sizes if width % self.head_dim]:
            raise ValueError(
                f"MaxViTConfig: hidden_sizes must be multiples of head_dim {self.head_dim}, got {odd[0]}; change one."
            )

    @property
    def side(self) -> int:
        """Of windows and of the grid."""
        return self.block_size or max(1, min(self.image_size) // _REDUCTION)


_TINY = MaxViTConfig()
_SIZES = {
    "tiny": _TINY,
    "small": replace(_TINY, hidden_sizes=(96, 192, 384, 768), drop_path_rate=0.3),
    "base": replace(_TINY, hidden_sizes=(96, 192, 384, 768), depths=(2, 6, 14, 2), drop_path_rate=0.4),
    "large": replace(
        _TINY, stem_size=128, hidden_sizes=(128, 256, 512, 1024), depths=(2, 6, 14, 2), drop_path_rate=0.6
    ),
    "xlarge": replace(
        _TINY, stem_size=192, hidden_sizes=(192, 384, 768, 1536), depths=(2, 6, 14, 2), drop_path_rate=0.6
    ),
}


class Stem(nn.Module):
    """Two convolutions of 3 x 3, the first halves the image; keys `conv1`, `norm1`, `conv2`."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = SameConv(in_channels, channels, 3, stride=2)
        self.norm1 = BatchNorm(channels)
        self.conv2 = SameConv(channels, channels, 3)

    def forward(self, images: Tensor) -> Tensor:
        """[B, colours, height, width] to [B, rows, columns, C]."""
        x: Tensor = self.conv2(ACTIVATIONS["gelu_tanh"](self.norm1(self.conv1(images))))
        return x.movedim(1, -1)


class Block(nn.Module):
    """Convolution, windows, grid; keys `conv`, `attn_block`, `attn_grid`. Maps [B, rows, columns, C] to the same."""

    def __init__(self, in_channels: int, channels: int, config: MaxViTConfig, *, stride: int, drop_path: float) -> None:
        super().__init__()
        self.conv = MBConv(in_channels, channels, stride=stride, drop_path=drop_path)
        self.attn_block, self.attn_grid = (
            ResidualBlock(
                WindowGridAttention(channels, channels // config.head_dim, block_size=config.side, pattern=pattern),
                MLP(channels, 4 * channels, activation="gelu_tanh"),
                norm=partial(nn.LayerNorm, channels, eps=1e-5),
                drop_path=drop_path,
            )
            for pattern in ("window", "grid")
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C] to [B, rows / stride, columns / stride, C']."""
        out: Tensor = self.attn_grid(self.attn_block(self.conv(hidden_states)))
        return out


class Head(ClassifierHead):
    """Norm of the mean over the cells, a layer with tanh, a linear layer; keys `norm`, `pre_logits.fc`, `fc`."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(channels, num_classes, norm=nn.LayerNorm(channels, eps=1e-5))
        self.pre_logits = nn.Sequential()
        self.pre_logits.add_module("fc", nn.Linear(channels, channels))
        self.pre_logits.add_module("act", nn.Tanh())

    def forward(self, hidden_states: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, rows, columns, C] to [B, num_classes], or to [B, C] with `pre_logits`."""
        pooled: Tensor = self.pre_logits(self.norm(hidden_states.mean((1, 2))))
        return pooled if pre_logits else self.fc(pooled)


class MaxViT(Backbone):
    """Image backbone in which every block sees the whole map, at a cost linear in the pixels.

    The first map is that of the stem, at half the image's size; stages give 1/4 to 1/32. Images of any size:
    what windows or the grid do not tile is padded with cells that nobody sees. Two attentions cost
    8 n C^2 + 4 n P^2 C multiplications for n cells and windows of P x P.

    Args:
        config: sizes.
    """

    tiny: ClassVar[MaxViTConfig] = MaxViTConfig(
        image_size=(64, 64), stem_size=8, hidden_sizes=(8, 12), depths=(1, 2), num_classes=5, head_dim=4, block_size=2
    )
    usual: ClassVar[str] = "maxvit_tiny_tf_224"
    presets: ClassVar[dict[str, MaxViTConfig]] = {
        f"maxvit_{name}_tf_{side}": replace(config, image_size=(side, side))
        for name, config in _SIZES.items()
        for side in (224, 384, 512)
    }

    def __init__(self, config: MaxViTConfig) -> None:
        widths, total = (config.stem_size, *config.hidden_sizes), sum(config.depths)
        rates = iter([config.drop_path_rate * i / total for i in range(total)])
        stages = [
            Stage(
                Block(before if i == 0 else width, width, config, stride=2 if i == 0 else 1, drop_path=next(rates))
                for i in range(depth)
            )
            for before, width, depth in zip(widths, config.hidden_sizes, config.depths)
        ]
        super().__init__(
            Stem(config.in_channels, config.stem_size),
            stages,
            Head(config.hidden_sizes[-1], config.num_classes),
            channels=widths,
            reductions=[2 ** (i + 1) for i in range(len(widths))],
            in_channels=config.in_channels,
        )
        self.config = config
        self.apply(_draw)

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """timm's names as they are, the authors' (`block_00_00/`) renamed; tables of another window are resized."""
        tables, is_official = "relative_position_bias_table", any("/" in name for name in state_dict)
        weights = from_tensorflow(state_dict) if is_official else state_dict
        return {n: resized(x, self.config.side) if n.endswith(tables) else x for n, x in weights.items()}


def _draw(module: nn.Module) -> None:
    """As the authors: kernels normal, biases zero."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
