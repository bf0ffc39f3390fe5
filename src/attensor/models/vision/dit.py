"""DiT: a transformer that removes noise from images or latents; time and class set the scale of every norm (adaLN).

    a1, b1, g1, a2, b2, g2 = linear(silu(time + class))
    x = x + g1 attention(norm(x) (1 + b1) + a1);   x = x + g2 MLP(norm(x) (1 + b2) + a2)

MoH-DiT routes the heads of its attention. Published weights load by their own names (arXiv:2212.09748, 2410.11842).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attensor.errors import ShapeError
from attensor.models.blocks import MLP
from attensor.models.convert import Rule, convert
from attensor.nn._shapes import check_sizes
from attensor.nn.mixture_of_heads import MixtureOfHeads
from attensor.nn.softmax_attention import SoftmaxAttention
from attensor.ops._checks import checked, checked_fields

__all__ = ["DiT", "DiTConfig"]

_FREQUENCIES = 256  # numbers that a time is told by


@checked_fields
@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a DiT; a tuple has one entry for each block.

    Attributes:
        image_size: height and width of images or latents; others work as well.
        patch_size: side of the squares that are tokens.
        in_channels: of images or latents.
        hidden_size: channels of a token.
        num_heads: heads of each block, which are as many as this tuple is long.
        head_dim: channels of a head; hidden_size / num_heads if None.
        num_shared, num_active: heads that are always on, and that are on for a token, shared ones included; None: no
            head is routed or weighed.
        mlp_ratio: channels inside an MLP over those outside.
        num_classes: what may be asked for.
        class_dropout: share of labels that are forgotten in training, so that the model also knows images of no class.
        learns_variance: twice the channels come out, the second half for the variance.
    Raises:
        ValueError: a number out of its range, or tuples of different lengths.
    """

    image_size: tuple[int, int] = (32, 32)
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 384
    num_heads: tuple[int, ...] = (6,) * 12
    head_dim: int | None = None
    num_shared: tuple[int, ...] | None = None
    num_active: tuple[int, ...] | None = None
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    class_dropout: float = 0.1
    learns_variance: bool = True

    def __post_init__(self) -> None:
        """Refuse what no model can be built of."""
        check_sizes(self, num_shared=0)
        for name in ("num_shared", "num_active"):
            found = getattr(self, name)
            if found is not None and len(found) != len(self.num_heads):
                raise ValueError(
                    f"DiTConfig: {name} must have one entry for each of the {len(self.num_heads)} blocks of num_heads, "
                    f"got {len(found)}."
                )

    @property
    def out_channels(self) -> int:
        """Noise, and what tells its variance."""
        return self.in_channels * (2 if self.learns_variance else 1)


class TimeEmbedding(nn.Module):
    """A time as cosines and sines, through an MLP; keys `mlp.{0,2}`."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, timesteps: Tensor) -> Tensor:
        """[B] to [B, C]."""
        dtype = next(self.mlp.parameters()).dtype
        half = _FREQUENCIES // 2
        exponents = torch.arange(half, device=timesteps.device, dtype=torch.float64) / half
        angles = timesteps[:, None].double() * torch.exp(-math.log(10_000) * exponents)
        out: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(dtype))
        return out


class LabelEmbedding(nn.Module):
    """A vector for each class, and one for none, which stands behind them; key `embedding_table`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_classes, self.dropout = config.num_classes, config.class_dropout
        self.embedding_table = nn.Embedding(config.num_classes + (config.class_dropout > 0), config.hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        """[B] to [B, C]; in training some labels are forgotten."""
        if self.training and self.dropout > 0:
            labels = torch.where(
                torch.rand(labels.shape, device=labels.device) < self.dropout, self.num_classes, labels
            )
        out: Tensor = self.embedding_table(labels)
        return out


class Block(nn.Module):
    """Attention and MLP between norms without weights; keys `attn`, `mlp.{fc1,fc2}`, `adaLN_modulation.1`."""

    def __init__(self, config: DiTConfig, index: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.attn = _attention(config, index)
        self.mlp = MLP(width, int(width * config.mlp_ratio), activation="gelu_tanh")
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, hidden_states: Tensor, condition: Tensor) -> Tensor:
        """Tokens [B, T, C] under a condition [B, C]: [B, T, C]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition)[:, None].chunk(6, -1)
        hidden_states = hidden_states + gate1 * self.attn(self.norm1(hidden_states) * (1 + scale1) + shift1)
        out: Tensor = hidden_states + gate2 * self.mlp(self.norm2(hidden_states) * (1 + scale2) + shift2)
        return out


class FinalLayer(nn.Module):
    """Tokens to what stands in their patches; keys `linear`, `adaLN_modulation.1`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, hidden_states: Tensor, condition: Tensor) -> Tensor:
        """[B, T, C] under [B, C] to [B, T, patch pixels x channels]."""
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, -1)
        out: Tensor = self.linear(self.norm_final(hidden_states) * (1 + scale) + shift)
        return out


class Patches(nn.Module):
    """[B, colours, height, width] to [B, rows, columns, C]; key `proj`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, config.patch_size, config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """A token for each square."""
        out: Tensor = self.proj(images)
        return out.movedim(1, -1)


def _heads(hidden_size: int, depth: int, num_heads: int) -> DiTConfig:
    return DiTConfig(hidden_size=hidden_size, num_heads=(num_heads,) * depth)


def _routed(config: DiTConfig, shared: tuple[int, ...], chosen: tuple[int, ...]) -> DiTConfig:
    return replace(config, num_shared=shared, num_active=tuple(s + k for s, k in zip(shared, chosen)))


def _thirds(
    config: DiTConfig, lengths: tuple[int, int, int], shared: tuple[int, ...], chosen: tuple[int, ...]
) -> DiTConfig:
    """8, 16 and 24 heads, of the width of 16 heads, in blocks of these numbers."""
    heads, shared, chosen = (
        tuple(n for n, length in zip(each, lengths) for _ in range(length)) for each in ((8, 16, 24), shared, chosen)
    )
    return _routed(replace(config, num_heads=heads, head_dim=config.hidden_size // 16), shared, chosen)


_S, _B = _heads(384, 12, 6), _heads(768, 12, 12)
_L, _XL = _heads(1024, 24, 16), _heads(1152, 28, 16)


class DiT(nn.Module):
    """Noise of noised images, or of latents, under a class; a diffusion (`diffusion.Diffusion`) trains and samples it.

    Args:
        config: sizes.
    """

    tiny: ClassVar[DiTConfig] = DiTConfig(
        image_size=(6, 4), in_channels=3, hidden_size=12, num_heads=(4, 2), head_dim=5, num_shared=(2, 2),
        num_active=(3, 2), mlp_ratio=2.0, num_classes=5, class_dropout=0.0,
    )  # fmt: skip
    presets: ClassVar[dict[str, DiTConfig]] = {
        "dit_s_2": _S,
        "dit_b_2": _B,
        "dit_l_2": _L,
        "dit_xl_2": _XL,
        "moh_dit_s_2_90": _routed(_S, (3,) * 8 + (6,) * 4, (2,) * 8 + (0,) * 4),
        "moh_dit_s_2_75": _routed(_S, (2,) * 2 + (3,) * 8 + (6,) * 2, (1,) * 6 + (2,) * 4 + (0,) * 2),
        "moh_dit_b_2_90": _routed(_B, (6,) * 5 + (7,) * 5 + (12,) * 2, (4,) * 10 + (0,) * 2),
        "moh_dit_b_2_75": _routed(_B, (4,) * 2 + (6,) * 8 + (12,) * 2, (2,) * 2 + (3,) * 8 + (0,) * 2),
        "moh_dit_l_2_90": _thirds(_L, (8, 8, 8), (8, 16, 16), (0, 0, 3)),
        "moh_dit_l_2_75": _thirds(_L, (8, 8, 8), (8, 8, 12), (0, 4, 4)),
        "moh_dit_xl_2_90": _thirds(_XL, (9, 10, 9), (8, 16, 16), (0, 0, 3)),
        "moh_dit_xl_2_75": _thirds(_XL, (9, 10, 9), (8, 10, 14), (0, 2, 2)),
    }

    @checked
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = Patches(config)
        self.t_embedder, self.y_embedder = TimeEmbedding(config.hidden_size), LabelEmbedding(config)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(len(config.num_heads)))
        self.final_layer = FinalLayer(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier's uniform weights, normal of 0.02 for time and class; at first the output is 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in (self.y_embedder.embedding_table, self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]
        zero = [part[-1] for name, part in self.named_modules() if name.endswith("adaLN_modulation")]
        for layer in (*zero, self.final_layer.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """A small legal call."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2, self.config.in_channels, *self.config.image_size, generator=generator)
        return {"images": images, "timesteps": torch.tensor([3, 700]), "labels": torch.tensor([0, 1])}

    def forward(self, images: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """The noise in noised images.

        Args:
            images: [B, in_channels, height, width], sides multiples of the patch size.
            timesteps: [B], how much noise: places in a diffusion's schedule.
            labels: [B], classes; `num_classes` for none, where the model knows that.
        Returns:
            [B, out_channels, height, width].
        Raises:
            ShapeError: other sizes.
        """
        self._check(images, timesteps, labels)
        cells = self.x_embedder(images)
        space = (cells.shape[1], cells.shape[2])
        hidden_states = (cells + _positions(space, self.config.hidden_size, cells)).flatten(1, 2)
        condition = self.t_embedder(timesteps) + self.y_embedder(labels)
        for block in self.blocks:
            hidden_states = block(hidden_states, condition)
        out = self.final_layer(hidden_states, condition)
        side = self.config.patch_size
        pixels = out.unflatten(1, space).unflatten(-1, (side, side, self.config.out_channels))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # type: ignore[no-any-return]

    def guided(self, images: Tensor, timesteps: Tensor, labels: Tensor, scale: float) -> Tensor:
        """Noise away from what images of no class have, and towards the class: classifier-free guidance.

        Args:
            images, timesteps, labels: as in `forward`.
            scale: 1 for the class alone, more for more of it. Costs two passes.
        Raises:
            ValueError: the model knows no images of no class.
        """
        if self.config.class_dropout == 0:
            raise ValueError(
                "DiT.guided: needs class_dropout above 0 in the configuration: no image of no class is known."
            )
        nothing = torch.full_like(labels, self.config.num_classes)
        both = self(images.repeat(2, 1, 1, 1), timesteps.repeat(2), torch.cat([labels, nothing]))
        with_class, without = both.chunk(2)
        out: Tensor = without + scale * (with_class - without)
        return out

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours as they are; the releases' joint projections become three, and their table of positions is computed."""
        if not any(name.endswith("attn.qkv.weight") for name in state_dict):
            return dict(state_dict)
        return convert("DiT", state_dict, _RELEASE)

    def _check(self, images: Tensor, timesteps: Tensor, labels: Tensor) -> None:
        side, channels = self.config.patch_size, self.config.in_channels
        if images.ndim != 4 or images.shape[1] != channels or images.shape[2] % side or images.shape[3] % side:
            raise ShapeError(
                f"DiT: images must be [B, {channels}, height, width] with sides that are multiples of {side}, got "
                f"{list(images.shape)}."
            )
        for name, x in (("timesteps", timesteps), ("labels", labels)):
            if x.shape != images.shape[:1]:
                raise ShapeError(f"DiT: {name} must be [B] = [{images.shape[0]}], got {list(x.shape)}.")


def _attention(config: DiTConfig, index: int) -> nn.Module:
    options: dict[str, Any] = {
        "head_dim": config.head_dim,
        "is_causal": False,
        "rotary_base": None,
        "qkv_bias": True,
        "out_bias": True,
    }
    heads = config.num_heads[index]
    if config.num_active is None:
        return SoftmaxAttention(config.hidden_size, heads, **options)
    shared = 0 if config.num_shared is None else config.num_shared[index]
    return MixtureOfHeads(config.hidden_size, heads, num_shared=shared, num_active=config.num_active[index], **options)


def _positions(space: tuple[int, int], size: int, like: Tensor) -> Tensor:
    """Sines and cosines of the column in the first half of the channels, of the row in the second."""
    quarter = size // 4
    speed = 10_000.0 ** (-torch.arange(quarter, device=like.device, dtype=torch.float64) / quarter)
    rows, columns = (torch.arange(n, device=like.device, dtype=torch.float64)[:, None] * speed for n in space)
    parts = [
        x.expand(*space, -1)
        for x in (columns.sin()[None], columns.cos()[None], rows.sin()[:, None], rows.cos()[:, None])
    ]
    return torch.cat(parts, -1).to(like.dtype)


_ATTENTION = r"(blocks\.\d+\.attn)\."
_RELEASE = (
    Rule(r"pos_embed", (), lambda table: ()),
    Rule(
        rf"{_ATTENTION}qkv\.(.*)",
        (r"\1.q_proj.\2", r"\1.k_proj.\2", r"\1.v_proj.\2"),
        lambda joint: joint.chunk(3),
    ),
    Rule(rf"{_ATTENTION}proj\.(.*)", (r"\1.o_proj.\2",)),
    Rule(rf"{_ATTENTION}(wg(?:_[01])?\.weight)", (r"\1.router.\2",)),
    Rule(r"(.*)", (r"\1",)),
)
