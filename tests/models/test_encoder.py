"""The generic image classifier around every grid mixer."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attensor.catalogue import Domain, build_mixer, load, mechanisms
from attensor.errors import ShapeError
from attensor.models.vision import Encoder, EncoderConfig

CONFIG = EncoderConfig((10, 14), 2, 3, 5, 12, num_layers=2, num_heads=3, mlp_hidden_size=20)
GRID_CARDS = [name for name, card in mechanisms().items() if Domain.GRID in card.domain]


def build(name: str, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    card = mechanisms()[name]
    layer, options = load(card.layer), card.mixer_options(Domain.GRID)
    return Encoder(CONFIG, lambda i: build_mixer(layer, 12, 3, layer_index=i, num_layers=2, **options)).double()


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 10, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", GRID_CARDS)
def test_every_pixel_counts_and_images_do_not_mix(name: str) -> None:
    # evaluation: in training, a mixer's batch norm may look at the whole batch
    encoder, x = build(name).eval(), images(3).requires_grad_()
    logits = encoder(x)
    assert logits.shape == (3, 5)
    (grad,) = torch.autograd.grad(logits[1, 2], x)
    assert grad[1].abs().min() > 0
    assert not grad[[0, 2]].any()


@pytest.mark.parametrize("name", GRID_CARDS)
def test_weights_travel_through_safetensors(name: str, tmp_path: Path) -> None:
    encoder, other, x = build(name), build(name, seed=1), images(2)
    assert not torch.equal(encoder(x), other(x))
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(encoder(x), other(x))
    assert torch.equal(encoder(x), copy.deepcopy(encoder)(x))


def test_the_mixer_sees_patches_where_they_are() -> None:
    """Patch (i, j) of the image is cell (i, j) of the grid, plus its own position."""
    seen = []

    class Spy(nn.Module):
        def forward(self, hidden_states: Tensor) -> Tensor:
            seen.append(hidden_states)
            return torch.zeros_like(hidden_states)

    encoder = Encoder(CONFIG, lambda i: Spy()).double()
    x = images(2)
    encoder(x)
    kernel, bias = encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias
    cells = encoder.pos_embed.expand(2, -1, -1, -1) + bias
    for i, j in itertools.product(range(5), range(7)):
        patch = x[:, None, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        cells[:, i, j] += (patch * kernel).sum((2, 3, 4))
    torch.testing.assert_close(seen[0], encoder.blocks[0].norm1(cells), rtol=1e-10, atol=1e-10)


def test_names_are_those_of_timm() -> None:
    names = set(build("neighborhood").state_dict())
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    modules = ["patch_embed.proj", "norm", "head", *(f"blocks.{i}.{part}" for i in (0, 1) for part in parts)]
    assert names == {"pos_embed", *(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))}


def test_builds_without_memory() -> None:
    with torch.device("meta"):
        encoder = Encoder(CONFIG, lambda i: nn.Identity())
    assert all(p.is_meta for p in encoder.parameters())


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image_size 10 x 15 is not a multiple of patch_size 2"):
        Encoder(EncoderConfig((10, 15), 2, 3, 5, 12, 1, 3, 20), lambda i: nn.Identity())
    with pytest.raises(ShapeError, match=r"images must be \[B, 3, 10, 14\], got \[2, 10, 14, 3\]"):
        build("axial")(images(2).movedim(1, -1))
