"""Names and shapes of the checkpoints of L2ViT and RAVLT, read from the authors' model files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attensor.models.vision.image_model import ImageModel
from attensor.models.vision.l2vit import L2ViTConfig
from attensor.models.vision.ravlt import RAVLTConfig
from tests.golden.drawn import weights

__all__ = ["by_released_names", "filled", "l2vit_shapes", "ravlt_shapes"]

Shapes = dict[str, tuple[int, ...]]


def layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def batch_norm(name: str, width: int) -> Shapes:
    statistics = {f"{name}.{kind}": (width,) for kind in ("running_mean", "running_var")}
    return layer(name, width) | statistics | {f"{name}.num_batches_tracked": ()}


def l2vit_shapes(config: L2ViTConfig) -> Shapes:
    widths, stem = config.hidden_sizes, "downsample_layers.0"
    half = widths[0] // 2
    shapes = layer(f"{stem}.proj.proj.0", half, config.in_channels, 3, 3) | batch_norm(f"{stem}.proj.proj.1", half)
    shapes |= layer(f"{stem}.proj.proj.3", widths[0], half, 3, 3) | batch_norm(f"{stem}.proj.proj.4", widths[0])
    shapes |= layer(f"{stem}.norm", widths[0])
    for stage, (width, depth, heads) in enumerate(zip(widths, config.depths, config.num_heads)):
        if stage:
            before = widths[stage - 1]
            shapes |= layer(f"downsample_layers.{stage}.proj", width, before, 2, 2)
            shapes |= layer(f"downsample_layers.{stage}.norm", before)
        for block in range(depth):
            at, is_linear = f"stages.{stage}.{block}.", block % 2 == 1
            shapes |= layer(f"{at}cpe.0.proj", width, 1, 3, 3)
            shapes |= {} if is_linear else layer(f"{at}cpe.1.proj", width, 1, 3, 3)
            shapes |= layer(f"{at}attn.qkv", 3 * width, width) | layer(f"{at}attn.proj", width, width)
            shapes |= layer(f"{at}mlp.fc1", 4 * width, width) | layer(f"{at}mlp.fc2", width, 4 * width)
            shapes |= layer(f"{at}norm1", width) | layer(f"{at}norm2", width)
            if is_linear:
                shapes |= {f"{at}attn.temperature": (heads, 1, 1)} | layer(f"{at}norm3", width)
                shapes |= batch_norm(f"{at}local_mp.bn", width)
                shapes |= layer(f"{at}local_mp.conv1", width, 1, 7, 7) | layer(f"{at}local_mp.conv2", width, 1, 7, 7)
    return shapes | layer("norm", widths[-1]) | layer("head", config.num_classes, widths[-1])


def ravlt_shapes(config: RAVLTConfig) -> Shapes:
    widths, projected = config.hidden_sizes, config.projected_size
    shapes: Shapes = {}
    channels = (config.in_channels, *[widths[0] // 2] * 3, widths[0])
    for i, (before, width) in enumerate(itertools.pairwise(channels)):
        shapes |= layer(f"patch_embed.proj.{3 * i}", width, before, 3, 3)
        shapes |= batch_norm(f"patch_embed.proj.{3 * i + 1}", width)
    for stage, (width, depth, heads) in enumerate(zip(widths, config.depths, config.num_heads)):
        shapes[f"layers.{stage}.RoPE.angle"] = (width // heads // 4 * 2,)
        inside = int(config.mlp_ratio * width)
        for block in range(depth):
            at = f"layers.{stage}.blocks.{block}."
            shapes |= layer(f"{at}pos", width, 1, 3, 3) | {f"{at}gamma_{i}": (1, width, 1, 1) for i in (1, 2)}
            shapes |= layer(f"{at}norm1.norm", width) | layer(f"{at}norm2.norm", width)
            shapes |= layer(f"{at}attn.qkvo", 4 * width, width, 1, 1) | layer(f"{at}attn.lepe", width, 1, 5, 5)
            shapes |= layer(f"{at}attn.proj", width, width, 1, 1)
            shapes |= layer(f"{at}ffn.fc1", inside, width, 1, 1) | layer(f"{at}ffn.fc2", width, inside, 1, 1)
            shapes |= layer(f"{at}ffn.dwconv", inside, 1, 3, 3)
        if stage + 1 < len(widths):
            shapes |= layer(f"layers.{stage}.downsample.reduction", widths[stage + 1], width, 3, 3)
            shapes |= batch_norm(f"layers.{stage}.downsample.norm", widths[stage + 1])
    shapes |= layer("proj", projected, widths[-1], 1, 1) | batch_norm("norm", projected)
    return shapes | layer("head", config.num_classes, projected, 1, 1)


def filled(model: ImageModel, converter: ImageModel, shapes: Shapes) -> Any:
    """The model in float64 with the weights of `tests.golden`, brought to its names by `converter`."""
    model.double().load_state_dict(converter.convert_state_dict(weights(shapes)))
    return model


def by_released_names(converter: ImageModel, shapes: Shapes, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by our names, under those of the checkpoint and in its shapes."""
    names = sorted(shapes)
    numbered = {name: torch.full(shapes[name], i) for i, name in enumerate(names)}
    old = {ours: names[int(x.flatten()[0])] for ours, x in converter.convert_state_dict(numbered).items()}
    return {old[ours]: x.reshape(shapes[old[ours]]) for ours, x in tensors.items()}
