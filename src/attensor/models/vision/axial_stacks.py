r"""Stacks of the Axial Transformer: what a pixel is told of earlier frames, earlier channels, rows above, and its row.

    f = later(blocks(conv(frames) + P))                        rows, columns, times before or at its own
    c = blocks(conv([channels before s, which is s]) + P + f)  rows, columns
    u = down(blocks(e + P + c))                                rows, columns down to its own row
    r = blocks(right(e) + u + P + c)                           its row up to itself
    logits = head(norm(r))

`later`, `down` and `right` shift by one and put zeros first: causality comes from them alone, so that blocks see their
own place. P are sums of learned positions, one table an axis and stack; e are embeddings of the levels.
Sizes: B images, T frames, C channels, H rows, W columns, K levels, D hidden size.
Source: arXiv:1912.12180, section 3, and its official code. Neither tells the order of the layers over frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from attensor.models.blocks import MLP, ResidualBlock
from attensor.models.vision.axial_config import AxialTransformerConfig
from attensor.nn.axial import AxialAttention
from attensor.nn.cache import TokenCache

__all__ = ["AxialStack", "Exterior", "Frames", "Plane", "shifted"]


def shifted(x: Tensor, axis: int) -> Tensor:
    """Every entry of an axis moved to the next place; zeros come first and the last is dropped."""
    return torch.cat([torch.zeros_like(x.narrow(axis, 0, 1)), x.narrow(axis, 0, x.shape[axis] - 1)], axis)


class AxialStack(nn.ModuleDict):
    """Turns of blocks, in each turn one along every axis.

    Args:
        config: of the model.
        turns: how many.
        axes: name -> (axis among those of the hidden states, whether a cell sees what comes before it only); the names
            are keys of the state_dict.
    """

    def __init__(self, config: AxialTransformerConfig, turns: int, axes: Mapping[str, tuple[int, bool]]) -> None:
        size = config.hidden_size

        def block(axis: int, is_causal: bool) -> ResidualBlock:
            return ResidualBlock(
                AxialAttention(size, config.num_heads, axis=axis, is_causal=is_causal),
                MLP(size, config.mlp_hidden_size, activation="gelu_sigmoid"),
                norm=partial(nn.LayerNorm, size, eps=1e-5),
                dropout=config.dropout,
            )

        super().__init__({name: nn.ModuleList(block(*axis) for _ in range(turns)) for name, axis in axes.items()})

    def forward(self, hidden_states: Tensor, caches: Sequence[TokenCache | None] | None = None) -> Tensor:
        """[B, *space, D] to the same; with caches, of the cells that follow along the causal axis."""
        blocks = self._blocks()
        for block, cache in zip(blocks, [None] * len(blocks) if caches is None else caches, strict=True):
            hidden_states = block(hidden_states, cache=cache)
        return hidden_states

    def new_caches(self, lines: int, max_length: int) -> list[TokenCache | None]:
        """One cache for each causal block, of so many lines in all; None for the others."""
        layers = [cast("AxialAttention", block.attn) for block in self._blocks()]
        return [layer.new_cache(lines, max_length) if layer.is_causal else None for layer in layers]

    def _blocks(self) -> list[ResidualBlock]:
        turns = zip(*(cast("nn.ModuleList", blocks) for blocks in self.values()), strict=True)
        return [cast("ResidualBlock", block) for turn in turns for block in turn]


class Frames(nn.Module):
    """What each frame is told of those before it; keys `conv`, `pos_t`, `pos_h`, `pos_w`, `blocks`."""

    def __init__(self, config: AxialTransformerConfig) -> None:
        super().__init__()
        (height, width), size = config.image_size, config.hidden_size
        self.most = config.num_levels - 1
        self.conv = nn.Conv2d(config.in_channels, size, 3, padding=1)
        self.pos_t = nn.Parameter(torch.empty(config.num_frames or 0, size))
        self.pos_h, self.pos_w = (nn.Parameter(torch.empty(n, size)) for n in (height, width))
        axes = {"rows": (2, False), "columns": (1, False), "times": (0, True)}
        self.blocks = AxialStack(config, config.num_frame_layers // 3, axes)

    def forward(self, frames: Tensor) -> Tensor:
        """Levels [B, T, C, H, W] to [B, T, H, W, D]: nothing of a frame itself or of later ones."""
        return shifted(self.summary(frames, 0), 1)

    def summary(self, frames: Tensor, first: int, caches: Sequence[TokenCache | None] | None = None) -> Tensor:
        """Frames from number `first` on, which caches continue, to [B, T, H, W, D]: of each and those before it."""
        count = frames.shape[1]
        values = frames.flatten(0, 1).to(self.pos_t.dtype) / self.most
        cells = self.conv(values).movedim(1, -1).unflatten(0, (-1, count))
        place = self.pos_t[first : first + count, None, None] + self.pos_h[:, None] + self.pos_w
        out: Tensor = self.blocks(cells + place, caches)
        return out


class Exterior(nn.Module):
    """What a channel is told of those before it; keys `conv`, `pos_h`, `pos_w`, `blocks`."""

    def __init__(self, config: AxialTransformerConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.most = config.num_levels - 1
        self.conv = nn.Conv2d(2 * config.in_channels, size, 3, padding=1)
        self.pos_h, self.pos_w = (nn.Parameter(torch.empty(n, size)) for n in config.image_size)
        self.blocks = AxialStack(config, config.num_exterior_layers // 2, {"rows": (1, False), "columns": (0, False)})

    def forward(self, images: Tensor, channel: Tensor, condition: Tensor | None) -> Tensor:
        """Levels [B, C, H, W], the number [B] of one channel each, and [B, H, W, D] or None, to [B, H, W, D]."""
        numbers = torch.arange(images.shape[1], device=images.device)
        is_before, is_own = (x[..., None, None] for x in (numbers < channel[:, None], numbers == channel[:, None]))
        values = images.to(self.pos_h.dtype) * is_before / self.most
        maps = torch.cat([values, is_own.to(values.dtype).expand_as(values)], 1)
        x = self.conv(maps).movedim(1, -1) + self.pos_h[:, None] + self.pos_w
        out: Tensor = self.blocks(x if condition is None else x + condition)
        return out


class Plane(nn.Module):
    """Autoregressive model of a channel, row by row; keys `embed`, `pos_h`, `pos_w`, `outer`, `inner`, `norm`, `head`.

    Args:
        config: of the model.
        rows: of the plane.
    """

    def __init__(self, config: AxialTransformerConfig, rows: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.embed = nn.Embedding(config.num_levels, size)
        self.pos_h, self.pos_w = (nn.Parameter(torch.empty(n, size)) for n in (rows, config.image_size[1]))
        self.outer = AxialStack(config, config.num_outer_layers // 2, {"rows": (1, False), "columns": (0, True)})
        self.inner = AxialStack(config, config.num_inner_layers, {"rows": (1, True)})
        self.norm, self.head = nn.LayerNorm(size, eps=1e-5), nn.Linear(size, config.num_levels)

    def place(self, condition: Tensor | None) -> Tensor:
        """Positions and condition [B, H, W, D], or the positions alone [1, H, W, D]."""
        positions = (self.pos_h[:, None] + self.pos_w)[None]
        return positions if condition is None else positions + condition

    def forward(self, levels: Tensor, condition: Tensor | None = None) -> Tensor:
        """Levels [B, H, W] and what is known beside them [B, H, W, D], to logits [B, H, W, K]."""
        cells, place = self.embed(levels), self.place(condition)
        above = shifted(self.outer(cells + place), 1)
        return self.logits(self.inner(shifted(cells, 2) + above + place))

    def logits(self, hidden_states: Tensor) -> Tensor:
        """[..., D] of the inner stack to [..., K]."""
        out: Tensor = self.head(self.norm(hidden_states))
        return out
