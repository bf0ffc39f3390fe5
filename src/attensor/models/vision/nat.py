"""NAT and DiNAT: neighbourhood attention, in DiNAT dilated in every second block (arXiv:2204.07143, 2209.15001).

    x = x + g1 * attention(norm(x));  x = x + g2 * MLP(norm(x))     g1 = g2 = 1 where there is no layer scale

The authors' weights and those of transformers' `nat` and `dinat` load by their own names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.models.blocks import MLP, LayerScale, ResidualBlock, drop_path_rates
from attensor.models.convert import Rule, convert
from attensor.models.vision.backbone import Backbone, ClassifierHead, Stage
from attensor.models.vision.image_model import draw_linear
from attensor.nn._shapes import check_sizes, check_stages
from attensor.nn.neighborhood import NeighborhoodAttention
from attensor.ops._checks import checked_fields

__all__ = ["NAT", "NATConfig"]

_NORM = partial(nn.LayerNorm, eps=1e-5)


@checked_fields
@dataclass(frozen=True)
class NATConfig:
    """Sizes of a NAT.

    Attributes:
        image_size: height and width in pixels; others work as well.
        hidden_sizes: channels of each level.
        depths: blocks of each level.
        num_heads: heads of each level.
        window_size: cells along a side of a neighbourhood.
        dilations: distance of neighbours, for each block of each level; 1 everywhere if None.
        mlp_ratio: channels inside an MLP over those outside.
        layer_scale: first value of the factors g1, g2; None for none.
        in_channels: colours.
        num_classes: logits; 0 gives the pooled features.
        drop_path_rate: stochastic depth of the last block, rising from 0.
    """

    image_size: tuple[int, int] = (224, 224)
    hidden_sizes: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (3, 4, 18, 5)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    window_size: int = 7
    dilations: tuple[tuple[int, ...], ...] | None = None
    mlp_ratio: float = 3.0
    layer_scale: float | None = None
    in_channels: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what no model can be built of."""
        check_sizes(self, num_classes=0)
        check_stages(self, "hidden_sizes", "depths", "num_heads", "dilations")
        lengths = tuple(map(len, self.dilations or ()))
        if self.dilations is not None and lengths != tuple(self.depths):
            raise ValueError(
                f"NATConfig: dilations must have one entry for each block, {tuple(self.depths)} of the stages, got "
                f"{lengths}; make them as many."
            )

    def dilation(self, level: int, block: int) -> int:
        """Of one block."""
        return 1 if self.dilations is None else self.dilations[level][block]


def _alternating(depths: tuple[int, ...], farthest: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Every second block of a level sees so far, the others their neighbours."""
    return tuple(tuple(far if i % 2 else 1 for i in range(depth)) for depth, far in zip(depths, farthest))


def _wide(width: int, rate: float, **options: Any) -> NATConfig:
    widths = tuple(width * 2**i for i in range(4))
    heads = tuple(w // 32 for w in widths)
    return replace(NATConfig(hidden_sizes=widths, num_heads=heads, mlp_ratio=2.0, drop_path_rate=rate), **options)


def _dilated(config: NATConfig, *farthest: int, **options: Any) -> NATConfig:
    return replace(config, dilations=_alternating(config.depths, farthest or (8, 4, 2, 1)), **options)


_TINY = NATConfig()
_MINI = replace(_TINY, depths=(3, 4, 6, 5))
_SMALL, _BASE = _wide(96, 0.3, layer_scale=1e-5), _wide(128, 0.5, layer_scale=1e-5)
_LARGE = _dilated(_wide(192, 0.35))


class Stem(nn.Module):
    """Two convolutions of 3 x 3 that halve the image each, and a norm; keys `proj.{0,1}`, `norm`."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
        )
        self.norm = _NORM(channels)

    def forward(self, images: Tensor) -> Tensor:
        """[B, colours, height, width] to [B, rows, columns, C], a cell for each 4 x 4 pixels begun."""
        out: Tensor = self.norm(self.proj(images).movedim(1, -1))
        return out


class Downsample(nn.Module):
    """A convolution of 3 x 3 that halves the map, and a norm; keys `reduction`, `norm`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm = _NORM(out_channels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C] to [B, rows / 2, columns / 2, C'], rounded up."""
        out: Tensor = self.norm(self.reduction(hidden_states.movedim(-1, 1)).movedim(1, -1))
        return out


class NAT(Backbone):
    """Image backbone in which every cell sees its neighbours, at a cost linear in the pixels.

    Images of any size: maps smaller than a dilated window are completed with zeros at the right and at the bottom, as
    published. The maps are at 1/4, 1/8, 1/16 and 1/32. A block costs n C (4 C + 2 r C + 2 w^2) multiplications for n
    cells, windows of w x w and an MLP of ratio r.

    Args:
        config: sizes.
    """

    tiny: ClassVar[NATConfig] = NATConfig(
        image_size=(32, 32), hidden_sizes=(8, 12), depths=(2, 1), num_heads=(2, 3), window_size=3,
        dilations=((1, 2), (1,)), mlp_ratio=2.0, layer_scale=0.1, num_classes=5,
    )  # fmt: skip
    usual: ClassVar[str] = "nat_tiny"
    presets: ClassVar[dict[str, NATConfig]] = {
        "nat_mini": _MINI,
        "nat_tiny": _TINY,
        "nat_small": _SMALL,
        "nat_base": _BASE,
        "dinat_mini": _dilated(_MINI),
        "dinat_tiny": _dilated(_TINY),
        "dinat_small": _dilated(_SMALL, layer_scale=None),
        "dinat_base": _dilated(_BASE),
        "dinat_large": _LARGE,
        "dinat_large_384": _dilated(_LARGE, 13, 6, 3, 1, image_size=(384, 384)),
        "dinat_large_384_11x11": replace(_LARGE, window_size=11, image_size=(384, 384)),
    }

    def __init__(self, config: NATConfig) -> None:
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        widths = config.hidden_sizes
        stages = [
            Stage(
                [_block(config, level, index, next(rates)) for index in range(depth)],
                downsample=Downsample(widths[level - 1], widths[level]) if level else None,
            )
            for level, depth in enumerate(config.depths)
        ]
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
        self.apply(draw_linear)

    @classmethod
    def fitted(cls, config: NATConfig, state_dict: Mapping[str, Tensor]) -> NATConfig:
        """The heads of the weights: those of the largest models changed after they were published."""
        heads = {
            int(name.split(".")[1]): len(x) for name, x in _renamed(state_dict).items() if name.endswith(".attn.rpb")
        }
        return replace(config, num_heads=tuple(heads.get(i, count) for i, count in enumerate(config.num_heads)))

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names (`levels.`) and transformers' (`encoder.levels.`) become these; biases are resized."""
        side = 2 * self.config.window_size - 1
        return {name: _resized(x, side) if name.endswith(".rpb") else x for name, x in _renamed(state_dict).items()}


def _block(config: NATConfig, level: int, index: int, rate: float) -> ResidualBlock:
    width, scale = config.hidden_sizes[level], config.layer_scale
    attention = NeighborhoodAttention(
        width,
        config.num_heads[level],
        window_size=config.window_size,
        dilation=config.dilation(level, index),
        relative_bias=True,
        padding="visible",
    )
    return ResidualBlock(
        attention,
        MLP(width, int(width * config.mlp_ratio)),
        norm=partial(_NORM, width),
        layer_scale=None if scale is None else partial(LayerScale, width, scale),
        drop_path=rate,
    )


def _resized(table: Tensor, side: int) -> Tensor:
    """Biases [H, 2 w - 1, 2 w - 1] for another window: bicubic, as the authors made those of 11 x 11 from 7 x 7."""
    if table.shape[-1] == side:
        return table
    wide = table.to(torch.promote_types(table.dtype, torch.float32))[None]
    return F.interpolate(wide, size=(side, side), mode="bicubic", align_corners=False)[0].to(table.dtype)


def _renamed(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of this module's parameters."""
    prefix = "dinat." if any(name.startswith("dinat.") for name in state_dict) else "nat."
    plain = {name.removeprefix(prefix): x for name, x in state_dict.items()}
    for start, rules in (("levels.", _OFFICIAL), ("encoder.levels.", _HUGGING_FACE)):
        if any(name.startswith(start) for name in plain):
            return convert("NAT", {_before_level(name): x for name, x in _joined(plain).items()}, rules)
    return dict(state_dict)


def _before_level(name: str) -> str:
    """What ends level i there begins level i + 1 here."""
    return re.sub(r"^(?:encoder\.)?levels\.(\d+)\.downsample", lambda m: f"stages.{int(m[1]) + 1}.downsample", name)


def _joined(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With query, key and value of transformers' layers as one projection, `attention.self.qkv`."""
    whole = dict(state_dict)
    for name in state_dict:
        if ".attention.self.query." in name:
            parts = [whole.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
            whole[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    return whole


_AFTER_LEVEL = Rule(r"(stages\.\d+\.downsample\..*)", (r"\1",))
_OFFICIAL = (
    _AFTER_LEVEL,
    Rule(r"patch_embed\.(.*)", (r"stem.\1",)),
    Rule(r"levels\.(\d+)\.blocks\.(\d+)\.gamma([12])", (r"stages.\1.blocks.\2.ls\3.gamma",)),
    Rule(r"levels\.(\d+)\.blocks\.(.*)", (r"stages.\1.blocks.\2",)),
    Rule(r"norm\.(.*)", (r"norm.\1",)),
    Rule(r"head\.(weight|bias)", (r"head.fc.\1",)),
)
_LAYER, _BLOCK = r"encoder\.levels\.(\d+)\.layers\.(\d+)\.", r"stages.\1.blocks.\2."
_HUGGING_FACE = (
    _AFTER_LEVEL,
    Rule(r"embeddings\.patch_embeddings\.projection\.(.*)", (r"stem.proj.\1",)),
    Rule(r"embeddings\.norm\.(.*)", (r"stem.norm.\1",)),
    Rule(rf"{_LAYER}layernorm_before\.(.*)", (rf"{_BLOCK}norm1.\3",)),
    Rule(rf"{_LAYER}layernorm_after\.(.*)", (rf"{_BLOCK}norm2.\3",)),
    Rule(rf"{_LAYER}attention\.self\.(rpb|qkv\..*)", (rf"{_BLOCK}attn.\3",)),
    Rule(rf"{_LAYER}attention\.output\.dense\.(.*)", (rf"{_BLOCK}attn.proj.\3",)),
    Rule(rf"{_LAYER}intermediate\.dense\.(.*)", (rf"{_BLOCK}mlp.fc1.\3",)),
    Rule(rf"{_LAYER}output\.dense\.(.*)", (rf"{_BLOCK}mlp.fc2.\3",)),
    Rule(
        rf"{_LAYER}layer_scale_parameters",
        (rf"{_BLOCK}ls1.gamma", rf"{_BLOCK}ls2.gamma"),
        lambda rows: rows.unbind(0),
    ),
    Rule(r"layernorm\.(.*)", (r"norm.\1",)),
    Rule(r"classifier\.(weight|bias)", (r"head.fc.\1",)),
)
