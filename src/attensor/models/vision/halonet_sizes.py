"""Sizes of HaloNets: those of the paper, H0 to H7, and those for which timm has weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from attensor.nn._shapes import check_sizes, check_stages
from attensor.ops._checks import checked_fields

__all__ = ["PRESETS", "TINY", "HaloNetConfig"]


@checked_fields
@dataclass(frozen=True, kw_only=True)
class HaloNetConfig:
    """Sizes of a HaloNet; the defaults are those that all models of the paper share.

    The paper tells neither the activation, nor whether cells beyond the map are seen, nor how positions of strided
    queries count: here it is ReLU, none are seen, and positions are exact. `as_timm` is timm's reading.

    Attributes:
        image_size: height and width in pixels; others work as well.
        stem_sizes: channels of the stem's convolutions, of 7 x 7 if it is one, otherwise of 3 x 3.
        stem_pool: bring the map to 1/4 by a maximum over 3 x 3 cells instead of a stride of the last convolution.
        inner_sizes: channels in the middle of the blocks of each stage.
        hidden_sizes: channels after each stage.
        blocks: for each stage a letter a block: "a" attention, "c" convolution.
        num_heads: of the attention of each stage.
        block_size, halo_size: see `HaloAttention`.
        key_dim: channels of a head's queries and keys; those of the middle shared out if None.
        value_ratio: channels of values over those of the middle.
        group_size: channels of a group of the convolutions; all in one if None.
        gate: "se" or "eca" after the convolutions.
        activation: "relu" or "silu".
        final_size: channels of a last convolution of 1 x 1 before the mean; none if None.
        as_timm: attention as in timm's weights.
        in_channels: colours.
        num_classes: logits; 0 gives the pooled features.
        drop_path_rate: stochastic depth of the last block, rising from 0.
    Source: arXiv:2103.12731, table 2 and appendix; sizes as re-typed by others, as no code was published.
    """

    image_size: tuple[int, int] = (256, 256)
    stem_sizes: tuple[int, ...] = (64,)
    stem_pool: bool = True
    inner_sizes: tuple[int, ...] = (64, 128, 256, 512)
    hidden_sizes: tuple[int, ...] = (64, 128, 256, 512)
    blocks: tuple[str, ...] = ("aaa", "aaa", 10 * "a", "aaa")
    num_heads: tuple[int, ...] = (4, 8, 8, 8)
    block_size: int = 8
    halo_size: int = 3
    key_dim: int | None = None
    value_ratio: float = 1.0
    group_size: int | None = None
    gate: str | None = None
    activation: str = "relu"
    final_size: int | None = None
    as_timm: bool = False
    in_channels: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no model can be built of."""
        check_sizes(self, num_classes=0, halo_size=0)
        check_stages(self, "inner_sizes", "hidden_sizes", "blocks", "num_heads")


def _paper(ratio: float, blocks: int, side: int = 256, **options: Any) -> HaloNetConfig:
    """`ratio` of a block's output to its middle, `blocks` of the third stage."""
    plain = HaloNetConfig(image_size=(side, side), blocks=("aaa", "aaa", blocks * "a", "aaa"), **options)
    return replace(plain, hidden_sizes=tuple(round(ratio * inner) for inner in plain.inner_sizes))


_TIMM = HaloNetConfig(
    stem_sizes=(24, 32, 64),
    hidden_sizes=(256, 512, 1024, 2048),
    blocks=("cc", "cc", "ca", "aa"),
    num_heads=(8, 8, 8, 8),
    as_timm=True,
)
_SILU = replace(_TIMM, activation="silu")

PRESETS = {
    "halonet_h0": _paper(0.5, 7),
    "halonet_h1": _paper(1.0, 10),
    "halonet_h2": _paper(1.25, 11),
    "halonet_h3": _paper(1.5, 12, 320, block_size=10, final_size=1024),
    "halonet_h4": _paper(3.0, 12, 384, block_size=12, halo_size=2, final_size=1280),
    "halonet_h5": _paper(2.0, 23, 448, block_size=14, halo_size=2, value_ratio=2.5, final_size=1536),
    "halonet_h6": _paper(2.75, 24, 512, halo_size=4, value_ratio=3.0, final_size=1536),
    "halonet_h7": _paper(3.5, 26, 600, block_size=10, value_ratio=4.0, final_size=2048),
    "halonet26t": replace(_TIMM, halo_size=2),
    "halonet50ts": replace(_SILU, blocks=("ccc", "ccca", "cacaca", "cac"), num_heads=(8, 4, 8, 8)),
    "sehalonet33ts": replace(
        _SILU,
        blocks=("cc", "cca", "cca", "aa"),
        hidden_sizes=(256, 512, 1024, 1536),
        stem_pool=False,
        gate="se",
        final_size=1280,
    ),
    "eca_halonext26ts": replace(_SILU, halo_size=2, key_dim=16, group_size=16, gate="eca"),
}

TINY = HaloNetConfig(
    image_size=(32, 32),
    stem_sizes=(4, 6),
    stem_pool=False,
    inner_sizes=(4, 8),
    hidden_sizes=(8, 12),
    blocks=("ca", "a"),
    num_heads=(2, 2),
    block_size=2,
    halo_size=1,
    gate="se",
    activation="silu",
    final_size=10,
    num_classes=5,
)
