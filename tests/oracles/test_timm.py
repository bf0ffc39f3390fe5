"""The vision transformer against timm's, with timm's weights."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from attensor.models import register_with_timm
from attensor.models.blocks import MLP, ConvolutionalPosition, ResidualBlock
from attensor.models.vision import Backbone, VisionTransformer, ViTConfig
from attensor.models.vision.backbone import ClassifierHead, Stage
from attensor.models.vision.vit import TokenAttention
from tests.oracles.timm import load_timm, randomise

timm = load_timm()

TINY = VisionTransformer.presets["vit_tiny_patch16_224"]
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}


def pair(config: ViTConfig = TINY, **options: object) -> tuple[nn.Module, VisionTransformer]:
    """timm's model with random weights, and ours with the same."""
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", **options).eval())
    ours = VisionTransformer(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def images(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_logits_and_gradients_of_vit_tiny(dtype: torch.dtype) -> None:
    theirs, ours = (model.to(dtype) for model in pair())
    x = images(224, 224, dtype=dtype)
    assert sum(p.numel() for p in ours.parameters()) == 5_717_416
    expected, actual = theirs(x), ours(x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=BOUNDS[dtype])
    weights = torch.linspace(-1, 1, actual.numel(), dtype=dtype).view_as(actual)
    names = ["pos_embed", "blocks.0.attn.qkv.weight", "blocks.11.mlp.fc1.bias", "patch_embed.proj.weight", "cls_token"]
    for out in (expected, actual):
        (out * weights).sum().backward()
    for name in names:
        left, right = ours.get_parameter(name).grad, theirs.get_parameter(name).grad
        scale = right.abs().max().item()
        torch.testing.assert_close(
            left, right, rtol=0, atol=10 * BOUNDS[dtype] * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("size", [(96, 160), (233, 250)], ids=str)
def test_other_sizes_and_padded_borders(size: tuple[int, int]) -> None:
    theirs, ours = pair(dynamic_img_size=True, dynamic_img_pad=True)
    x = images(*size, dtype=torch.float32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)


def test_features_maps_and_head() -> None:
    theirs, ours = (model.double() for model in pair())
    x = images(224, 224)
    for norm in (False, True):
        (last, maps), (their_last, their_maps) = (
            m.forward_intermediates(x, [3, -1], norm=norm) for m in (ours, theirs)
        )
        for actual, expected in zip([last, *maps], [their_last, *their_maps], strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)
    features = theirs.forward_features(x)
    torch.testing.assert_close(
        ours.forward_head(features, pre_logits=True), theirs.forward_head(features, pre_logits=True), rtol=0, atol=1e-10
    )


def test_mean_of_the_patches_and_layer_scale() -> None:
    options = {"class_token": False, "global_pool": "avg", "init_values": 0.1}
    config = dataclasses.replace(TINY, class_token=False, layer_scale=0.1)
    theirs, ours = (model.double() for model in pair(config, **options))
    x = images(224, 224)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-10)
    assert ours.no_weight_decay() == {"pos_embed"}


def test_a_backbone_of_our_parts_has_the_names_and_shapes_of_davit_tiny() -> None:
    """Stem, stages, blocks with two positions, norm and classifier lie where timm's hierarchical models have them."""

    class Cut(nn.Module):
        def __init__(self, channels: int, width: int, size: int, norm: int) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(channels, width, size), nn.LayerNorm(norm)

    def block(width: int) -> ResidualBlock:
        positions = [ConvolutionalPosition(width), ConvolutionalPosition(width)]
        mixer = TokenAttention(width, width // 32)
        return ResidualBlock(mixer, MLP(width, 4 * width), norm=partial(nn.LayerNorm, width), cpe=positions)

    widths, depths = (96, 192, 384, 768), (1, 1, 3, 1)
    with torch.device("meta"):
        cuts = [None, *(Cut(old, new, 2, old) for old, new in itertools.pairwise(widths))]
        stages = [
            Stage([nn.Sequential(block(width), block(width)) for _ in range(depth)], downsample=cut)
            for width, depth, cut in zip(widths, depths, cuts, strict=True)
        ]
        head = ClassifierHead(768, 1000, norm=nn.LayerNorm(768))
        ours = Backbone(Cut(3, 96, 7, 96), stages, head, channels=widths, reductions=(4, 8, 16, 32))
        theirs = timm.create_model("davit_tiny")
    shapes = [{name: tuple(t.shape) for name, t in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert ours.feature_info == [{key: info[key] for key in ours.feature_info[0]} for info in theirs.feature_info]


def test_timm_builds_our_models_by_name(tmp_path: Path) -> None:
    """With its own checkpoint, as features, with another classifier; the second registration changes nothing."""
    assert "attensor_vit_tiny_patch16_224" in register_with_timm()
    assert register_with_timm() == register_with_timm()
    theirs = randomise(timm.create_model("vit_tiny_patch16_224").eval())
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    name, path, x = "attensor_vit_tiny_patch16_224", str(tmp_path / "weights.safetensors"), images(224, 224).float()
    for options in ({"checkpoint_path": path}, {"pretrained": True, "pretrained_cfg_overlay": {"file": path}}):
        ours = timm.create_model(name, **options).eval()
        assert isinstance(ours, VisionTransformer)
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)
    maps = timm.create_model(name, features_only=True, out_indices=(0, 3))(x)
    assert [tuple(one.shape) for one in maps] == [(2, 192, 14, 14)] * 2
    assert timm.create_model(name, num_classes=7)(x).shape == (2, 7)
    with pytest.raises(ValueError, match="no weights are hosted"):
        timm.create_model(name, pretrained=True)
