"""Hierarchical backbones with timm's weights, every parameter of which is random: logits, all gradients, maps."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from attensor import models
from tests.oracles.timm import load_timm, randomise

timm = load_timm()
from timm.models.byobnet import ByoBlockCfg  # noqa: E402 - timm is not there before

# name, which is timm's -> sides of images that both take; built for the first
BACKBONES = {
    "maxvit_tiny_tf_224": (64, 128),
    "davit_tiny": (64, 83),
    "davit_base_fl": (40,),
    "halonet26t": (64, 128),
    "halonet50ts": (64,),
    "sehalonet33ts": (64, 128),
    "eca_halonext26ts": (64,),
    "halonet_h1": (64,),
}
DEPTHS = {"maxvit_tiny_tf_224": (1, 1, 2, 1), "davit_tiny": (1, 1, 1, 1), "davit_base_fl": (1, 1, 1, 1)}
# what timm calls H1 has other heads than the paper's, and sees beyond the map as all of timm's do
CHANGES = {"halonet_h1": {"num_heads": (8, 8, 8, 8), "as_timm": True}}
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-9}


def smaller(name: str, config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Changes of our configuration to a smaller one, and the same as options of timm's model."""
    if name in DEPTHS:
        return {"depths": DEPTHS[name]}, {"depths": DEPTHS[name]}
    inner = (16, 32, 64, 128)
    ratio = 1 if config.hidden_sizes == config.inner_sizes else 4
    changes = {
        "inner_sizes": inner,
        "hidden_sizes": tuple(ratio * width for width in inner),
        "blocks": ("aa", "a", "a", "a") if set(config.blocks[0]) == {"a"} else ("c", "ca", "cc", "aa"),
        "block_size": 2,
        "halo_size": 1,
        "final_size": config.final_size and 40,
    }
    attention = {"block_size": 2, "halo_size": 1, "dim_head": config.key_dim}
    blocks = [
        [
            ByoBlockCfg(
                type="self_attn" if kind == "a" else "bottle",
                d=1,
                c=ratio * width,
                s=1 if stage == 0 else 2,
                gs=config.group_size or 0,
                br=1 / ratio,
                self_attn_layer="halo",
                self_attn_kwargs={**attention, "num_heads": heads},
            )
            for kind in kinds
        ]
        for stage, (kinds, width, heads) in enumerate(zip(changes["blocks"], inner, config.num_heads, strict=True))
    ]
    return changes, {"blocks": blocks, "num_features": changes["final_size"] or 0}


def pair(name: str, dtype: torch.dtype, *, is_whole: bool = False) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and timm's, of few blocks or whole, with the same random weights."""
    side, *_ = BACKBONES[name]
    whole = models.create(name, num_classes=11, **({"img_size": side} if "halo" not in name else {}), device="meta")
    config = dataclasses.replace(whole.config, **CHANGES.get(name, {}))
    changes, options = ({}, {}) if is_whole else smaller(name, config)
    sized = {"img_size": side} if name.startswith("maxvit") else {}
    theirs = randomise(timm.create_model(name, num_classes=11, **sized, **options).eval())
    ours = type(whole)(dataclasses.replace(config, **changes)).eval()
    ours.load_state_dict(ours.convert_state_dict(theirs.state_dict()), strict=True)
    return ours.to(dtype), theirs.to(dtype)


def images(side: int, dtype: torch.dtype, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, side, side, dtype=dtype, generator=torch.Generator().manual_seed(3))


def closeness(actual: Tensor, expected: Tensor) -> float:
    return float(((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).detach())


# the others differ in sizes and are part of `make test`
FAST = ("davit_tiny", "halonet26t")
NAMED = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in BACKBONES]
# in one of both precisions and of both sizes
SIZED = [
    pytest.param(n, side, dtype, marks=[pytest.mark.slow] * (n not in FAST or i > 0 or dtype == torch.float32))
    for n, sides in BACKBONES.items()
    for i, side in enumerate(sides)
    for dtype in BOUNDS
]


@pytest.mark.parametrize(("name", "side", "dtype"), SIZED)
def test_logits_and_all_gradients(name: str, side: int, dtype: torch.dtype) -> None:
    ours, theirs = pair(name, dtype)
    outs = []
    for model in (ours, theirs):
        x = images(side, dtype).requires_grad_()
        out = model(x)
        (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)).sum().backward()
        outs.append((out.detach(), x.grad))
    assert closeness(outs[0][0], outs[1][0]) < BOUNDS[dtype]
    gradients = ours.convert_state_dict({n: p.grad for n, p in theirs.named_parameters()})
    if dtype == torch.float64:  # float32 rounds gradients of forty layers in another order
        assert closeness(outs[0][1], outs[1][1]) < BOUNDS[dtype]
        for parameter, mine in ours.named_parameters():
            assert closeness(mine.grad, gradients[parameter]) < 1e-8, parameter


@pytest.mark.parametrize("name", NAMED)
def test_maps_widths_and_strides(name: str) -> None:
    ours, theirs = pair(name, torch.float64)
    x = images(BACKBONES[name][0], torch.float64)
    mine, expected = (m.forward_intermediates(x, intermediates_only=True) for m in (ours, theirs))
    assert len(mine) == len(expected)
    for actual, other in zip(mine, expected):
        assert closeness(actual, other) < 1e-9
    for key in ("num_chs", "reduction"):
        assert [one[key] for one in ours.feature_info] == [one[key] for one in theirs.feature_info]


@pytest.mark.parametrize("name", NAMED)
def test_training_with_batch_statistics(name: str) -> None:
    """Norms over the batch move as timm's do, but for the momentum of the paper."""
    ours, theirs = pair(name, torch.float64)
    for model in (ours, theirs):
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.1
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
            if hasattr(module, "rate"):
                module.rate = 0.0
    x = images(BACKBONES[name][0], torch.float64)
    assert closeness(ours.train()(x), theirs.train()(x)) < 1e-9
    buffers = ours.convert_state_dict(dict(theirs.named_buffers()))
    for key, mine in ours.named_buffers():
        assert closeness(mine.double(), buffers[key].double()) < 1e-9, key


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_logits_of_the_whole_model(name: str) -> None:
    ours, theirs = pair(name, torch.float32, is_whole=True)
    # blocks of 8 cells at a 32nd of the image
    sides = (256, 512) if name == "halonet26t" else (256,) if "halo" in name else BACKBONES[name][:1]
    for side in sides:
        x = images(side, torch.float32, batch=1)
        with torch.no_grad():
            assert closeness(ours(x), theirs(x)) < 1e-5
