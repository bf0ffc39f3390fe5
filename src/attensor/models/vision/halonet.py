"""HaloNet: a residual network whose convolutions of 3 x 3 are attention in blocks with halos (arXiv:2103.12731).

Weights of timm's `halonet26t`, `halonet50ts`, `sehalonet33ts` and `eca_halonext26ts` load as they are. Of the paper's
own models, H0 to H7, neither weights nor code were published; `HaloNetConfig` tells what had to be chosen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor, nn

from attensor.models.blocks import drop_path_rates
from attensor.models.vision.backbone import Backbone, ClassifierHead
from attensor.models.vision.halonet_sizes import PRESETS, TINY, HaloNetConfig
from attensor.models.vision.residual import GATES, Blocks, Bottleneck, ConvNorm, Pool, Stem
from attensor.nn.halo import HaloAttention

__all__ = ["HaloNet", "HaloNetConfig"]


class HaloNet(Backbone):
    """Image backbone of local attention, whose cost is linear in the pixels.

    The first map is that of the stem, at half the image's size; stages give 1/4 to 1/32. Images of any size: blocks at
    the border are completed with cells that nobody sees, or with zeros that are seen where weights are timm's.

    Args:
        config: sizes.
    Raises:
        ValueError: letters of blocks other than "a" and "c", another gate, or a stem that does not come to 1/4.
    """

    tiny: ClassVar[HaloNetConfig] = TINY
    usual: ClassVar[str] = "halonet26t"
    presets: ClassVar[dict[str, HaloNetConfig]] = PRESETS

    def __init__(self, config: HaloNetConfig) -> None:
        _check(config)
        stem = _stem(config)
        # the map before it comes to 1/4 is one of those for detectors: what brings it there is of the first stage
        bridge: dict[str, nn.Module] = {"pool": Pool()} if config.stem_pool else dict([stem.popitem()])
        rates = iter(drop_path_rates(config.drop_path_rate, sum(map(len, config.blocks))))
        stages, channels = list[Blocks](), [config.stem_sizes[len(stem) - 1], *config.hidden_sizes]
        for index, before in enumerate([config.stem_sizes[-1], *config.hidden_sizes[:-1]]):
            parts = ({} if index else bridge) | _stage(config, index, before, rates)
            stages.append(Blocks(OrderedDict(parts)))
        if config.final_size is not None:
            stages[-1].add_module("final_conv", ConvNorm(channels[-1], config.final_size, activation=config.activation))
            channels[-1] = config.final_size
        super().__init__(
            Stem(stem),
            stages,
            ClassifierHead(channels[-1], config.num_classes),
            channels=channels,
            reductions=[2 ** (i + 1) for i in range(len(channels))],
            in_channels=config.in_channels,
        )
        self.config = config
        self.apply(_draw)

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """timm's names, but for two layers that here are of the first and of the last stage."""
        bridge, last = f"conv{len(self.config.stem_sizes)}.", len(self.config.blocks) - 1
        moved = {"final_conv.": f"stages.{last}.final_conv."}
        if not self.config.stem_pool:
            moved[f"stem.{bridge}"] = f"stages.0.{bridge}"
        converted = dict(state_dict)
        for old, new in moved.items():
            for name in [name for name in converted if name.startswith(old)]:
                converted[new + name.removeprefix(old)] = converted.pop(name)
        return converted


def _check(config: HaloNetConfig) -> None:
    if not all(kinds and set(kinds) <= {"a", "c"} for kinds in config.blocks):
        raise ValueError(
            'HaloNet: blocks must be a text for each stage, of the letters "a" (attention) and "c" (convolution), got '
            f"{config.blocks}."
        )
    if config.gate not in (None, *GATES):
        raise ValueError(f"HaloNet: gate must be one of {', '.join(GATES)}, or None, got {config.gate!r}.")
    if not config.stem_pool and len(config.stem_sizes) < 2:
        raise ValueError(
            f"HaloNet: stem_sizes {config.stem_sizes} is one convolution, which only halves the image; give "
            "another one or set stem_pool."
        )


def _stem(config: HaloNetConfig) -> OrderedDict[str, nn.Module]:
    """Its convolutions; the first has a stride, and the last where there is no pooling."""
    widths = config.stem_sizes
    last = len(widths) - 1
    stem = OrderedDict[str, nn.Module]()
    for i, (before, width) in enumerate(zip((config.in_channels, *widths), widths)):
        stride = 2 if i == 0 or (i == last and not config.stem_pool) else 1
        stem[f"conv{i + 1}"] = ConvNorm(before, width, 3 if last else 7, stride=stride, activation=config.activation)
    return stem


def _stage(config: HaloNetConfig, index: int, before: int, rates: Iterator[float]) -> dict[str, nn.Module]:
    """Blocks of one stage by their names; the first halves the map, but in the first stage."""
    inner, width = config.inner_sizes[index], config.hidden_sizes[index]
    blocks = dict[str, nn.Module]()
    for i, kind in enumerate(config.blocks[index]):
        stride = 2 if index and not i else 1
        blocks[str(i)] = Bottleneck(
            width if i else before,
            width,
            inner,
            attention=_attention(config, index, stride) if kind == "a" else None,
            stride=stride,
            groups=inner // config.group_size if config.group_size else 1,
            gate=config.gate,
            activation=config.activation,
            drop_path=next(rates),
        )
    return blocks


def _attention(config: HaloNetConfig, index: int, stride: int) -> HaloAttention:
    inner, heads = config.inner_sizes[index], config.num_heads[index]
    return HaloAttention(
        inner,
        heads,
        block_size=config.block_size,
        halo_size=config.halo_size,
        key_size=None if config.key_dim is None else heads * config.key_dim,
        value_size=round(config.value_ratio * inner),
        query_stride=stride,
        output_projection=False,
        as_timm=config.as_timm,
    )


def _draw(module: nn.Module) -> None:
    """As timm: convolutions by the number of their outputs, projections of attention by that of their inputs."""
    if isinstance(module, HaloAttention):
        for layer in (module.q, module.kv):
            nn.init.trunc_normal_(layer.weight, std=layer.in_channels**-0.5)
    elif isinstance(module, nn.Conv2d):
        outputs = module.out_channels * module.kernel_size[0] * module.kernel_size[1] // module.groups
        nn.init.normal_(module.weight, std=(2 / outputs) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
