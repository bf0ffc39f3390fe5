"""Hierarchical backbones with timm's weights, every parameter of which is random: logits, all gradients, maps."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from attensor import models
from tests.oracles.timm import load_timm, randomise

timm = load_timm()

# name, which is timm's -> blocks of a smaller one, and the sides of images that both take; built for the first
BACKBONES = {
    "maxvit_tiny_tf_224": ((1, 1, 2, 1), (64, 128)),
    "davit_tiny": ((1, 1, 1, 1), (64, 83)),
    "davit_base_fl": ((1, 1, 1, 1), (40,)),
}
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-9}


def pair(name: str, dtype: torch.dtype, *, is_whole: bool = False) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and timm's, of few blocks or whole, with the same random weights."""
    depths, (side, *_) = BACKBONES[name]
    sized = {} if name.startswith("davit") else {"img_size": side}
    small = {} if is_whole else {"depths": depths}
    theirs = randomise(timm.create_model(name, num_classes=11, **sized, **small).eval())
    whole = models.create(name, img_size=side, num_classes=11, device="meta")
    ours = type(whole)(dataclasses.replace(whole.config, **small)).eval()
    ours.load_state_dict(ours.convert_state_dict(theirs.state_dict()), strict=True)
    return ours.to(dtype), theirs.to(dtype)


def images(side: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 3, side, side, dtype=dtype, generator=torch.Generator().manual_seed(3))


def closeness(actual: Tensor, expected: Tensor) -> float:
    return float(((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).detach())


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("name", "side"), [(n, s) for n, (_, sides) in BACKBONES.items() for s in sides])
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


@pytest.mark.parametrize("name", BACKBONES)
def test_maps_widths_and_strides(name: str) -> None:
    ours, theirs = pair(name, torch.float64)
    x = images(BACKBONES[name][1][0], torch.float64)
    mine, expected = (m.forward_intermediates(x, intermediates_only=True) for m in (ours, theirs))
    assert len(mine) == len(expected)
    for actual, other in zip(mine, expected):
        assert closeness(actual, other) < 1e-9
    for key in ("num_chs", "reduction"):
        assert [one[key] for one in ours.feature_info] == [one[key] for one in theirs.feature_info]


@pytest.mark.parametrize("name", BACKBONES)
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
    x = images(BACKBONES[name][1][0], torch.float64)
    assert closeness(ours.train()(x), theirs.train()(x)) < 1e-9
    buffers = dict(theirs.named_buffers())
    for key, mine in ours.named_buffers():
        assert closeness(mine.double(), buffers[key].double()) < 1e-9, key


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_logits_of_the_whole_model(name: str) -> None:
    ours, theirs = pair(name, torch.float32, is_whole=True)
    x = images(BACKBONES[name][1][0], torch.float32)
    with torch.no_grad():
        assert closeness(ours(x), theirs(x)) < 1e-5
