"""RAVLT: rank-augmented linear attention, of the published weights in the fine stages alone (arXiv:2411.07635).

    x = x + conv(x);  x = x + g1 attention(norm(x));  x = x + g2 feed_forward(norm(x))

The paper presents a linear model; its releases have softmax attention in the stages 3 and 4, with the same names and
shapes. `ravlt_t` .. `ravlt_l` are the releases, `ravlt_t_linear` .. `ravlt_l_linear` are linear in all stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from attensor.models.blocks import ConvolutionalPosition, LayerScale, ResidualBlock, drop_path_rates
from attensor.models.convert import Rule, convert
from attensor.models.vision.backbone import Backbone, ClassifierHead, Stage
from attensor.models.vision.image_model import draw_layer
from attensor.nn._shapes import check_sizes, check_stages
from attensor.nn.rank_augmented import RankAugmentedLinearAttention
from attensor.ops._checks import checked_fields

__all__ = ["RAVLT", "RAVLTConfig"]

_NORM = partial(nn.LayerNorm, eps=1e-6)
_RELEASED: tuple[Literal["linear", "softmax"], ...] = ("linear", "linear", "softmax", "softmax")


@checked_fields
@dataclass(frozen=True)
class RAVLTConfig:
    """Sizes of a RAVLT; each tuple has one entry for each stage.

    Attributes:
        image_size: height and width in pixels; others work as well.
        hidden_sizes: channels.
        depths: blocks.
        num_heads: heads, each of a multiple of 4 channels.
        attention: `"linear"` or `"softmax"`, see `RankAugmentedLinearAttention`; nothing in the weights tells which.
        layer_scale: initial factors of the branches.
        mlp_ratio: channels inside a feed-forward for each of the map.
        projected_size: channels that the classifier is given.
        in_channels: colours.
        num_classes: logits; 0 gives the pooled features.
        drop_path_rate: stochastic depth of the last block, rising from 0.
    Raises:
        ValueError: a number out of its range, or tuples of different lengths.
    """

    image_size: tuple[int, int] = (224, 224)
    hidden_sizes: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (1, 2, 4, 8)
    attention: tuple[Literal["linear", "softmax"], ...] = _RELEASED
    layer_scale: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    mlp_ratio: float = 3.5
    projected_size: int = 1024
    in_channels: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what no model can be built of."""
        check_sizes(self, num_classes=0)
        check_stages(self, "hidden_sizes", "depths", "num_heads", "attention", "layer_scale")


_SIZES = {
    "t": RAVLTConfig(),
    "s": RAVLTConfig(
        hidden_sizes=(64, 128, 320, 512), depths=(3, 5, 9, 3), num_heads=(1, 2, 5, 8), drop_path_rate=0.15
    ),
    "b": RAVLTConfig(
        hidden_sizes=(96, 192, 384, 512),
        depths=(4, 6, 12, 6),
        num_heads=(1, 2, 6, 8),
        layer_scale=(1.0, 1.0, 1e-6, 1e-6),
        drop_path_rate=0.4,
    ),
    "l": RAVLTConfig(
        hidden_sizes=(96, 192, 448, 640),
        depths=(4, 7, 19, 8),
        num_heads=(1, 2, 7, 10),
        layer_scale=(1e-6, 1e-6, 1e-6, 1e-6),
        drop_path_rate=0.55,
    ),
}


class Stem(nn.Module):
    """Four convolutions of 3 x 3, of which the first and the last halve the image; keys `proj.{0,1,3,4,6,7,9,10}`."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        inside = channels // 2
        layers: list[nn.Module] = []
        for before, width, stride in ((in_channels, inside, 2), (inside, inside, 1), (inside, inside, 1)):
            layers += [nn.Conv2d(before, width, 3, stride, 1), nn.BatchNorm2d(width), nn.GELU()]
        self.proj = nn.Sequential(*layers, nn.Conv2d(inside, channels, 3, 2, 1), nn.BatchNorm2d(channels))

    def forward(self, images: Tensor) -> Tensor:
        """[B, colours, height, width] to [B, rows, columns, C]."""
        out: Tensor = self.proj(images)
        return out.movedim(1, -1)


class Downsample(nn.Module):
    """A convolution that halves the map, and a batch norm; keys `conv`, `norm`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(in_channels, out_channels, 3, 2, 1), nn.BatchNorm2d(out_channels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C] to [B, rows / 2, columns / 2, C'], rounded up."""
        out: Tensor = self.norm(self.conv(hidden_states.movedim(-1, 1)))
        return out.movedim(1, -1)


class FeedForward(nn.Module):
    """`fc2(t + dwconv(t))` with `t = gelu(fc1(x))`, an MLP that sees the cells around each; keys `fc1, dwconv, fc2`.

    Args:
        hidden_size: channels C of input and output.
        mlp_hidden_size: channels inside.
    Source: arXiv:2411.07635, its official code.
    """

    def __init__(self, hidden_size: int, mlp_hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(hidden_size, mlp_hidden_size, 1)
        self.dwconv = nn.Conv2d(mlp_hidden_size, mlp_hidden_size, 3, padding=1, groups=mlp_hidden_size)
        self.fc2 = nn.Conv2d(mlp_hidden_size, hidden_size, 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C] to the same."""
        inside = F.gelu(self.fc1(hidden_states.movedim(-1, 1)))
        out: Tensor = self.fc2(inside + self.dwconv(inside))
        return out.movedim(1, -1)


class Head(ClassifierHead):
    """A convolution of 1 x 1 with batch norm and SiLU, the mean over the cells, a linear layer; keys `proj`, `norm`,
    `fc`.
    """

    def __init__(self, channels: int, projected_size: int, num_classes: int) -> None:
        super().__init__(projected_size, num_classes, norm=nn.BatchNorm2d(projected_size))
        self.proj = nn.Conv2d(channels, projected_size, 1)

    def forward(self, hidden_states: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, rows, columns, C] to [B, num_classes], or to [B, projected_size] with `pre_logits`."""
        pooled = F.silu(self.norm(self.proj(hidden_states.movedim(-1, 1)))).mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)


class RAVLT(Backbone):
    """Image backbone with attention over the whole map in every block, linear in the pixels where the map is fine.

    Images of any size; stages round odd sides up. The maps are at 1/4, 1/8, 1/16 and 1/32. An attention over n cells
    costs 4 n C^2 / heads operations where it is linear, and 4 n^2 C by softmax.

    Args:
        config: sizes.
    """

    tiny: ClassVar[RAVLTConfig] = RAVLTConfig(
        image_size=(32, 32),
        hidden_sizes=(8, 24),
        depths=(1, 2),
        num_heads=(1, 3),
        attention=("linear", "softmax"),
        layer_scale=(1.0, 0.5),
        projected_size=17,
        num_classes=5,
    )
    usual: ClassVar[str] = "ravlt_s"
    presets: ClassVar[dict[str, RAVLTConfig]] = {
        f"ravlt_{name}{suffix}": replace(config, attention=kinds)
        for name, config in _SIZES.items()
        for suffix, kinds in (("", _RELEASED), ("_linear", ("linear",) * 4))
    }

    def __init__(self, config: RAVLTConfig) -> None:
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        widths, stages = config.hidden_sizes, []
        for index, (width, depth) in enumerate(zip(widths, config.depths)):
            blocks = [_block(config, index, next(rates)) for _ in range(depth)]
            stages.append(Stage(blocks, downsample=Downsample(widths[index - 1], width) if index else None))
        super().__init__(
            Stem(config.in_channels, widths[0]),
            stages,
            Head(widths[-1], config.projected_size, config.num_classes),
            channels=widths,
            reductions=[2 ** (i + 2) for i in range(len(widths))],
            in_channels=config.in_channels,
        )
        self.num_features = config.projected_size
        self.config = config
        self.apply(draw_layer)

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours as they are; the release's names (`patch_embed.`) become ours.

        Raises:
            ValueError: weights in the release's layout for a model with other kinds of attention than released: names
                and shapes would fit, and every output would be wrong.
        """
        if not any(name.startswith("patch_embed.") for name in state_dict):
            return dict(state_dict)
        if self.config.attention != _RELEASED:
            raise ValueError(
                f"RAVLT: weights in the layout of the releases, which were trained with attention={_RELEASED}, do not "
                f"fit attention={self.config.attention}; create the model without _linear. If these are other ones, "
                "convert them by convert_state_dict of such a model and load what it returns."
            )
        return convert("RAVLT", state_dict, _release_names(len(self.config.depths)))


def _block(config: RAVLTConfig, stage: int, rate: float) -> ResidualBlock:
    width = config.hidden_sizes[stage]
    return ResidualBlock(
        RankAugmentedLinearAttention(width, config.num_heads[stage], attention=config.attention[stage]),
        FeedForward(width, int(config.mlp_ratio * width)),
        norm=partial(_NORM, width),
        cpe=[ConvolutionalPosition(width)],
        layer_scale=partial(LayerScale, width, config.layer_scale[stage]),
        drop_path=rate,
    )


def _release_names(stages: int) -> tuple[Rule, ...]:
    """A stage's reduction is the next one's here, and its table of angles is computed at each call."""
    block = r"layers\.(\d+)\.blocks\.(\d+)\."
    reductions = []
    for stage in range(stages - 1):
        new = f"stages.{stage + 1}.downsample"
        reductions.append(Rule(rf"layers\.{stage}\.downsample\.reduction\.(.*)", (rf"{new}.conv.\1",)))
        reductions.append(Rule(rf"layers\.{stage}\.downsample\.norm\.(.*)", (rf"{new}.norm.\1",)))
    return (
        Rule(r"patch_embed\.(proj\..*)", (r"stem.\1",)),
        *reductions,
        Rule(r"layers\.\d+\.RoPE\.angle", (), lambda angle: ()),
        Rule(rf"{block}pos\.(.*)", (r"stages.\1.blocks.\2.cpe1.proj.\3",)),
        Rule(rf"{block}(norm[12])\.norm\.(.*)", (r"stages.\1.blocks.\2.\3.\4",)),
        Rule(rf"{block}(attn\..*)", (r"stages.\1.blocks.\2.\3",)),
        Rule(rf"{block}ffn\.(.*)", (r"stages.\1.blocks.\2.mlp.\3",)),
        Rule(rf"{block}gamma_([12])", (r"stages.\1.blocks.\2.ls\3.gamma",), lambda factors: (factors.flatten(),)),
        Rule(r"((?:proj|norm)\..*)", (r"head.\1",)),
        Rule(r"head\.weight", ("head.fc.weight",), lambda kernel: (kernel.flatten(1),)),
        Rule(r"head\.bias", ("head.fc.bias",)),
    )
