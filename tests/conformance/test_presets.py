"""Every published model has its published size; every class of models learns, travels and compiles in small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attensor import models
from attensor.catalogue import cards, load
from attensor.models.vision.image_model import ImageModel

PRESETS = [(name, count) for card in cards().values() for name, count in card.presets.items()]
CLASSES = sorted({path for card in cards().values() for path in card.models})
IMAGE_CLASSES = [path for path in CLASSES if issubclass(load(path), ImageModel)]
ONE_EACH = pytest.mark.parametrize("path", IMAGE_CLASSES, ids=lambda path: path.partition(":")[2])


def build(path: str, seed: int = 0) -> nn.Module:
    """The smallest model of its class."""
    torch.manual_seed(seed)
    kind: Any = load(path)
    model: nn.Module = kind(kind.tiny)
    return model


def batch(model: Any, count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    size = (count, model.in_channels, *model.config.image_size)
    return torch.randn(size, generator=generator), torch.arange(count) % model.num_classes


@pytest.mark.parametrize(("name", "count"), PRESETS, ids=[name for name, _ in PRESETS])
def test_a_preset_has_its_published_size(name: str, count: int) -> None:
    model = models.create(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(count, rel=0.005)


def test_names_are_those_of_the_cards() -> None:
    assert models.model_names() == sorted(name for name, _ in PRESETS)


@ONE_EACH
def test_a_few_steps_lower_the_loss_and_reach_every_parameter(path: str) -> None:
    model = build(path).train()
    images, labels = batch(model)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@ONE_EACH
def test_weights_travel_through_a_file(path: str, tmp_path: Path) -> None:
    model, other = build(path).eval(), build(path, seed=1).eval()
    images, _ = batch(model)
    assert not torch.equal(model(images), other(images))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(model(images), other(images))


@pytest.mark.slow
@ONE_EACH
def test_compiles_to_the_same_numbers(path: str) -> None:
    model = build(path).double().eval()
    images = batch(model)[0].double()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images), rtol=1e-10, atol=1e-10)
