"""The plain vision transformer with timm's names, for images of any size.

    x = [class token, patches] + positions;   x = block_i(x), i = 1 .. n;   logits = head(norm(x)[class token])

Sizes: B images, C channels, P prefix tokens (0 or 1), a grid of rows x columns patches, T = P + rows * columns tokens.
Source: arXiv:2010.11929.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.models.blocks import MLP, LayerScale, ResidualBlock, drop_path_rates
from attensor.models.vision.encoder import PatchEmbedding
from attensor.models.vision.image_model import ImageModel, draw_linear
from attensor.nn._shapes import check_sizes
from attensor.nn.grid_attention import GridMixer
from attensor.nn.mixer import Heads
from attensor.ops import softmax_attention
from attensor.ops._checks import checked, checked_fields

__all__ = ["TokenAttention", "ViTConfig", "VisionTransformer"]


@checked_fields
@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes of a vision transformer; the defaults are those of `vit_base_patch16_224`.

    Attributes:
        image_size: height and width in pixels for which the positions are learned; others interpolate them.
        patch_size: side of a patch in pixels.
        in_channels: colours.
        num_classes: logits; 0 gives the pooled features.
        hidden_size: channels C.
        num_layers: blocks.
        num_heads: heads of the default mixer.
        mlp_ratio: channels inside the MLP, in multiples of C.
        class_token: classify by a token of its own; otherwise by the normed mean over the patches.
        layer_scale: initial factors of the branches; None for none.
        drop_path_rate: stochastic depth of the last block, rising from 0.
        norm_eps: added to the variance in the norms.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    in_channels: int = 3
    num_classes: int = 1000
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    class_token: bool = True
    layer_scale: float | None = None
    drop_path_rate: float = 0.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        """Refuse what no model can be built of."""
        check_sizes(self, num_classes=0)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches along height and width; a border that fills no patch is padded."""
        height, width = self.image_size
        return -(-height // self.patch_size), -(-width // self.patch_size)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the patches."""
        return int(self.class_token)


class TokenAttention(GridMixer):
    """Softmax attention among all tokens, with joint projections: keys `qkv`, `proj`. Cost O(T^2 C)."""

    ranks = (3,)
    uses_space = False

    def attend(self, heads: Heads) -> Tensor:
        """[B, T, H, D] three times to the same."""
        out: Tensor = softmax_attention(heads.q, heads.k, heads.v)
        return out


class VisionTransformer(ImageModel):
    """Vision transformer around any mixer of tokens.

    `forward_features` gives [B, T, C] with the prefix tokens in front, as timm does. Can be built on the meta device.

    Args:
        config: sizes.
        mixer: layer index -> module that maps [B, T, C] to the same; softmax attention if None.
    """

    classifier = "head"
    tiny: ClassVar[ViTConfig] = ViTConfig(
        image_size=(16, 24), patch_size=8, num_classes=5, hidden_size=12, num_layers=2, num_heads=3
    )
    usual: ClassVar[str] = "vit_small_patch16_224"
    presets: ClassVar[dict[str, ViTConfig]] = {
        "vit_tiny_patch16_224": ViTConfig(hidden_size=192, num_heads=3),
        "vit_small_patch16_224": ViTConfig(hidden_size=384, num_heads=6),
        "vit_base_patch16_224": ViTConfig(),
    }

    def __init__(self, config: ViTConfig, mixer: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        width, rows, columns = config.hidden_size, *config.grid_size
        self.config, self.grid_size, self.num_prefix_tokens = config, config.grid_size, config.num_prefix_tokens
        self.in_channels, self.num_features, self.num_classes = config.in_channels, width, config.num_classes
        mixer = mixer or (lambda index: TokenAttention(width, config.num_heads))
        norm = partial(nn.LayerNorm, width, eps=config.norm_eps)
        scale = None if config.layer_scale is None else partial(LayerScale, width, config.layer_scale)
        self.patch_embed = PatchEmbedding(config.in_channels, width, config.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if config.class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_prefix_tokens + rows * columns, width))
        self.blocks = nn.ModuleList(
            ResidualBlock(
                mixer(index), MLP(width, int(width * config.mlp_ratio)), norm=norm, layer_scale=scale, drop_path=rate
            )
            for index, rate in enumerate(drop_path_rates(config.drop_path_rate, config.num_layers))
        )
        # of every token, or of their mean alone
        self.norm = norm() if config.class_token else nn.Identity()
        self.fc_norm = nn.Identity() if config.class_token else norm()
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity()
        self.feature_info = [
            {"num_chs": width, "reduction": config.patch_size, "module": f"blocks.{index}"}
            for index in range(config.num_layers)
        ]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw positions, the class token and all linear layers; convolutions and norms are as they draw themselves."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        self.apply(draw_linear)

    def embed(self, images: Tensor) -> Tensor:
        """[B, colours, height, width] to [B, T, C]; borders that fill no patch are padded with zeros."""
        height, width = images.shape[-2:]
        side = self.config.patch_size
        cells = self.patch_embed(F.pad(images, (0, -width % side, 0, -height % side)))
        positions = self.positions(cells.shape[1], cells.shape[2])
        tokens: Tensor = cells.flatten(1, 2)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], 1)
        return tokens + positions

    def positions(self, rows: int, columns: int) -> Tensor:
        """Position embedding [1, T, C] for another grid: bicubic, antialiased; computed in at least float32."""
        return _resized(self.pos_embed, self.num_prefix_tokens, self.grid_size, (rows, columns))

    def parts(self) -> nn.ModuleList:
        """The blocks."""
        return self.blocks

    def normed(self, hidden_states: Tensor, *, is_last: bool) -> Tensor:
        """The last norm fits every block's output."""
        out: Tensor = self.norm(hidden_states)
        return out

    def as_map(self, hidden_states: Tensor, images: Tensor) -> Tensor:
        """[B, T, C] to [B, C, rows, columns], without the prefix tokens."""
        rows, columns = (-(-pixels // self.config.patch_size) for pixels in images.shape[-2:])
        return hidden_states[:, self.num_prefix_tokens :].mT.reshape(images.shape[0], self.num_features, rows, columns)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, T, C] to [B, num_classes], or to [B, C] with `pre_logits`."""
        pooled: Tensor = self.fc_norm(features[:, 0] if self.config.class_token else features.mean(1))
        return pooled if pre_logits else self.head(pooled)

    @checked
    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = None, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps `indices` do not need; the norm of the mean goes with the classifier."""
        if prune_head:
            self.fc_norm = nn.Identity()
        return super().prune_intermediate_layers(indices, prune_norm, prune_head)

    def no_weight_decay(self) -> set[str]:
        """Positions and the class token do not decay, nor what the mixers say."""
        own = {"pos_embed"} if self.cls_token is None else {"pos_embed", "cls_token"}
        return super().no_weight_decay() | own

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """timm's weights as they are, with positions of another square image resized to this one."""
        converted = dict(state_dict)
        positions = converted.get("pos_embed")
        if positions is not None and positions.shape != self.pos_embed.shape:
            side = round(max(0, positions.shape[1] - self.num_prefix_tokens) ** 0.5)
            if side * side + self.num_prefix_tokens == positions.shape[1]:
                converted["pos_embed"] = _resized(positions, self.num_prefix_tokens, (side, side), self.grid_size)
        return converted


def _resized(positions: Tensor, prefix: int, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    # an exported program serves all sizes: it may not be cut down to the one that it was traced with
    if not torch.compiler.is_exporting() and new == old:
        return positions
    grid = positions[:, prefix:].mT.reshape(1, -1, *old)
    wide = torch.promote_types(grid.dtype, torch.float32)
    resized = F.interpolate(grid.to(wide), size=new, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:, :prefix], resized.to(positions.dtype).flatten(2).mT], 1)
