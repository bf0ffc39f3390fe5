"""The models of all cards: published sizes, a tiny one that learns, weights that travel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from attensor import models
from attensor.catalogue import cards, load
from tests.conformance.cases import weights

PRESETS = {name: count for card in cards().values() for name, count in card.presets.items()}
CLASSES = sorted({path for card in cards().values() for path in card.models})
EVERY = pytest.mark.parametrize("path", CLASSES)


def tiny(path: str, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = load(path)(load(path).tiny)
    return model.eval()


def inputs(model: Any) -> dict[str, Tensor]:
    """A model says itself what it takes, as transformers' models do, or has images of a size."""
    if hasattr(model, "dummy_inputs"):
        return dict(model.dummy_inputs)
    size = (3, model.config.in_channels, *model.config.image_size)
    return {"images": torch.randn(size, generator=torch.Generator().manual_seed(1))}


def out(model: nn.Module) -> Tensor:
    given = inputs(model)
    found = model(*given.values()) if "images" in given else model(**given)
    found = getattr(found, "logits", found)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize(("name", "published"), PRESETS.items())
def test_a_preset_has_the_published_number_of_parameters(name: str, published: int) -> None:
    model = models.create(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(published, rel=5e-3)


def test_names_of_presets_are_one_each() -> None:
    assert len(PRESETS) == sum(len(card.presets) for card in cards().values())
    by_class = [name for path in CLASSES for name in load(path).presets]
    assert sorted(by_class) == sorted(PRESETS)


@EVERY
def test_a_model_is_public_under_its_name(path: str) -> None:
    assert getattr(models, path.partition(":")[2]) is load(path)
    assert path.partition(":")[2] in dir(models)


@EVERY
def test_a_tiny_one_trains_a_step(path: str) -> None:
    model = tiny(path).train()
    target = torch.randn(out(model).shape, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = (weights(target).abs() * (out(model) - target) ** 2).mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


@EVERY
def test_weights_travel(path: str, tmp_path: Path) -> None:
    model, other = tiny(path), tiny(path, seed=1)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(torch.sin(torch.arange(parameter.numel()) + index).view_as(parameter) / 10)
    save_model(model, str(tmp_path / "model.safetensors"))
    assert not torch.equal(out(other), out(model))
    load_model(other, tmp_path / "model.safetensors")
    assert torch.equal(out(other), out(model))


@EVERY
def test_builds_without_memory(path: str) -> None:
    with torch.device("meta"):
        model = load(path)(load(path).tiny)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    shapes = {name: tensor.shape for name, tensor in tiny(path).state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
