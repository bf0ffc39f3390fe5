"""TransNeXt: aggregated attention where the map is fine, cosine attention where it is coarse; MoH-ViT routes its heads.

    x = x + attention(norm(x));  x = x + conv_glu(norm(x))

Published weights of TransNeXt and of MoH-ViT load by their own names (arXiv:2311.17132, arXiv:2410.11842).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from attensor.models.blocks import ResidualBlock, drop_path_rates
from attensor.models.convert import Rule, convert
from attensor.models.vision.backbone import Backbone, ClassifierHead, Stage
from attensor.models.vision.image_model import draw_linear
from attensor.nn._shapes import check_sizes, check_stages
from attensor.nn.aggregated import AggregatedAttention, CosineAttention
from attensor.ops._checks import checked_fields

__all__ = ["TransNeXt", "TransNeXtConfig"]

_NORM = partial(nn.LayerNorm, eps=1e-6)


@checked_fields
@dataclass(frozen=True)
class TransNeXtConfig:
    """Sizes of a TransNeXt; each tuple has one entry for each stage.

    Attributes:
        image_size: height and width in pixels that positions are measured by; others work as well.
        hidden_sizes: channels.
        depths: blocks.
        num_heads: heads.
        mlp_ratios: channels inside a feed-forward for each of the map, of which two thirds are kept.
        reductions: cells along a side that are pooled to one key; 1: all cells see each other.
        num_shared, num_active: heads that are always on, and that are on for a cell, shared ones included; None: no
            head is routed or weighed.
        in_channels: colours.
        num_classes: logits; 0 gives the pooled features.
        drop_path_rate: stochastic depth of the last block, rising from 0.
    Raises:
        ValueError: a number out of its range, or tuples of different lengths.
    """

    image_size: tuple[int, int] = (224, 224)
    hidden_sizes: tuple[int, ...] = (72, 144, 288, 576)
    depths: tuple[int, ...] = (5, 5, 22, 5)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    num_shared: tuple[int, ...] | None = None
    num_active: tuple[int, ...] | None = None
    in_channels: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.45

    def __post_init__(self) -> None:
        """Refuse what no model can be built of."""
        check_sizes(self, num_classes=0, num_shared=0)
        routed = ("num_shared", "num_active")
        check_stages(self, "hidden_sizes", "depths", "num_heads", "mlp_ratios", "reductions", *routed)

    def heads(self, stage: int) -> dict[str, int]:
        """Options of a stage's attention that route its heads; none where they are not routed."""
        if self.num_active is None:
            return {}
        shared = 0 if self.num_shared is None else self.num_shared[stage]
        return {"num_shared": shared, "num_active": self.num_active[stage]}


_SMALL = TransNeXtConfig()
_BASE = TransNeXtConfig(
    hidden_sizes=(96, 192, 384, 768), depths=(5, 5, 23, 5), num_heads=(4, 8, 16, 32), drop_path_rate=0.6
)
_TINY = replace(_SMALL, depths=(2, 2, 15, 2), drop_path_rate=0.3)
_MICRO = replace(_TINY, hidden_sizes=(48, 96, 192, 384), num_heads=(2, 4, 8, 16), drop_path_rate=0.15)


class PatchEmbed(nn.Module):
    """An overlapping convolution with a stride, and a norm; keys `proj`, `norm`. Images are [B, colours, .., ..]."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int, *, of_images: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2)
        self.norm, self.of_images = nn.LayerNorm(channels), of_images

    def forward(self, hidden_states: Tensor) -> Tensor:
        """To [B, rows, columns, C]."""
        before = hidden_states if self.of_images else hidden_states.movedim(-1, 1)
        out: Tensor = self.norm(self.proj(before).movedim(1, -1))
        return out


class ConvolutionalGLU(nn.Module):
    """`fc2(gelu(dwconv(a)) * b)` with `a, b` the halves of `fc1(x)`: each gate sees the 3 x 3 around it.

    Source: arXiv:2311.17132, section 3.4. Keys `fc1`, `dwconv`, `fc2`.
    """

    def __init__(self, hidden_size: int, mlp_hidden_size: int) -> None:
        super().__init__()
        inside = 2 * mlp_hidden_size // 3
        self.fc1 = nn.Linear(hidden_size, 2 * inside)
        self.dwconv = nn.Conv2d(inside, inside, 3, padding=1, groups=inside)
        self.fc2 = nn.Linear(inside, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C] to the same."""
        gate, inside = self.fc1(hidden_states).chunk(2, -1)
        gate = self.dwconv(gate.movedim(-1, 1)).movedim(1, -1)
        out: Tensor = self.fc2(F.gelu(gate) * inside)
        return out


class NormedStage(Stage):
    """A stage with a norm behind its blocks, key `norm`."""

    def __init__(self, blocks: list[nn.Module], norm: nn.Module, *, downsample: nn.Module | None = None) -> None:
        super().__init__(blocks, downsample=downsample)
        self.norm = norm

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C'] to [B, rows', columns', C]."""
        out: Tensor = self.norm(super().forward(hidden_states))
        return out


class TransNeXt(Backbone):
    """Image backbone whose cells see their neighbours and the whole map, pooled; a share of the heads if routed.

    Images of any size; the maps are at 1/4, 1/8, 1/16 and 1/32. Train routed ones with `nn.load_balance_loss`.

    Args:
        config: sizes.
    """

    tiny: ClassVar[TransNeXtConfig] = TransNeXtConfig(
        image_size=(32, 32), hidden_sizes=(8, 12), depths=(1, 2), num_heads=(2, 3), mlp_ratios=(3, 2),
        reductions=(2, 1), num_shared=(2, 1), num_active=(2, 2), num_classes=5, drop_path_rate=0.0,
    )  # fmt: skip
    presets: ClassVar[dict[str, TransNeXtConfig]] = {
        "transnext_micro": _MICRO,
        "transnext_tiny": _TINY,
        "transnext_small": _SMALL,
        "transnext_base": _BASE,
        "moh_vit_s_80": replace(_SMALL, num_shared=(3, 6, 3, 8), num_active=(3, 6, 9, 20)),
        "moh_vit_s_75": replace(_SMALL, num_shared=(3, 6, 3, 4), num_active=(3, 6, 9, 16)),
        "moh_vit_b_75": replace(_BASE, num_shared=(4, 8, 4, 5), num_active=(4, 8, 12, 21)),
        "moh_vit_b_50": replace(_BASE, num_shared=(2, 2, 2, 4), num_active=(4, 6, 8, 12)),
    }

    def __init__(self, config: TransNeXtConfig) -> None:
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        widths, stages = config.hidden_sizes, []
        for index, (width, depth) in enumerate(zip(widths, config.depths)):
            blocks: list[nn.Module] = [_block(config, index, next(rates)) for _ in range(depth)]
            below = PatchEmbed(widths[index - 1], width, 3, 2, of_images=False) if index else None
            stages.append(NormedStage(blocks, _NORM(width), downsample=below))
        super().__init__(
            PatchEmbed(config.in_channels, widths[0], 7, 4, of_images=True),
            stages,
            ClassifierHead(widths[-1], config.num_classes),
            channels=widths,
            reductions=[2 ** (i + 2) for i in range(len(widths))],
            in_channels=config.in_channels,
        )
        self.config = config
        self.apply(_draw)

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours as they are; the names of the releases (`block1.0.`, `patch_embed1.`) become ours."""
        if not any(name.startswith("patch_embed1.") for name in state_dict):
            return dict(state_dict)
        return convert("TransNeXt", {_counted(name): x for name, x in state_dict.items()}, _RELEASE)


def _block(config: TransNeXtConfig, stage: int, rate: float) -> ResidualBlock:
    width, reduction = config.hidden_sizes[stage], config.reductions[stage]
    options: dict[str, Any] = config.heads(stage)
    options["trained_space"] = tuple(side // 2 ** (stage + 2) for side in config.image_size)
    attention: nn.Module
    if reduction == 1:
        attention = CosineAttention(width, config.num_heads[stage], **options)
    else:
        attention = AggregatedAttention(width, config.num_heads[stage], reduction=reduction, **options)
    glu = ConvolutionalGLU(width, width * config.mlp_ratios[stage])
    return ResidualBlock(attention, glu, norm=partial(_NORM, width), drop_path=rate)


def _draw(module: nn.Module) -> None:
    """Linear layers truncated normal of 0.02, convolutions by what they write to."""
    draw_linear(module)
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _counted(name: str) -> str:
    """Stages are counted from 0 here."""
    return re.sub(r"^(patch_embed|block|norm)(\d+)\.", lambda m: f"{m[1]}{int(m[2]) - 1}.", name)


_ATTENTION = r"block(\d+)\.(\d+)\.attn\."
_OURS = r"stages.\1.blocks.\2.attn."
_RELEASE = (
    Rule(r"patch_embed0\.(.*)", (r"stem.\1",)),
    Rule(r"patch_embed(\d+)\.(.*)", (r"stages.\1.downsample.\2",)),
    Rule(r"norm(\d+)\.(.*)", (r"stages.\1.norm.\2",)),
    Rule(r"head\.(.*)", (r"head.fc.\1",)),
    Rule(r"relative_(?:pos_index|coords_table)\d+", (), lambda table: ()),
    Rule(rf"{_ATTENTION}(?:seq_length_scale|padding_mask)", (), lambda table: ()),
    Rule(rf"{_ATTENTION}(wg(?:_[01])?)\.weight", (rf"{_OURS}router.\3.weight",)),
    Rule(rf"{_ATTENTION}cpb_(fc[12])\.(.*)", (rf"{_OURS}bias.\3.\4",)),
    Rule(rf"{_ATTENTION}temperature", (rf"{_OURS}temperature",), lambda x: (x.flatten(),)),
    Rule(rf"{_ATTENTION}(query_embedding|learnable_bias)", (rf"{_OURS}\3",), lambda x: (x.squeeze(1),)),
    Rule(r"block(\d+)\.(\d+)\.mlp\.dwconv\.dwconv\.(.*)", (r"stages.\1.blocks.\2.mlp.dwconv.\3",)),
    Rule(r"block(\d+)\.(\d+)\.(.*)", (r"stages.\1.blocks.\2.\3",)),
)
