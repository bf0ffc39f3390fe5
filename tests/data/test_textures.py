"""Generated images to be compared across: pure functions, labels that are what is drawn, parts that tell nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from attensor.data.textures import MarkedCorners, SharedTextures, gratings

KINDS = (SharedTextures, MarkedCorners)


def spectrum(quadrants: Tensor) -> Tensor:
    """Place of the largest frequency, which no phase changes: [.., side, side] to [..]."""
    power = torch.fft.rfft2(quadrants).abs().flatten(-2)
    power[..., 0] = 0
    return power.argmax(-1)


def quadrants_of(images: Tensor) -> Tensor:
    """[B, 4, side / 2, side / 2] of [B, 1, side, side]."""
    side = images.shape[-1] // 2
    return torch.stack(
        [images[:, 0, down : down + side, right : right + side] for down in (0, side) for right in (0, side)], 1
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_a_pure_function_of_its_arguments(kind: Any) -> None:
    data = kind()
    images, labels = data.batch(5, seed=1, batch_size=7)
    assert images.shape == (7, *data.image_shape)
    assert images.dtype == torch.float32
    data.batch(6, seed=1, batch_size=7)
    again, same = kind().batch(5, seed=1, batch_size=7)
    assert torch.equal(images, again)
    assert torch.equal(labels, same)
    for other in (data.batch(6, seed=1, batch_size=7)[0], data.batch(5, seed=2, batch_size=7)[0]):
        assert not torch.equal(images, other)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_images_stay_the_same_and_are_a_thousand(kind: Any) -> None:
    data = kind()
    batches, again = (list(data.held_out_batches(300)) for _ in range(2))
    assert [len(labels) for _, labels in batches] == [300, 300, 300, 100]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(batches, again))
    counts = torch.bincount(torch.cat([labels for _, labels in batches]), minlength=len(data.classes))
    assert (counts > 0.7 * 1000 / len(data.classes)).all()
    assert len(counts) == len(data.classes)


def test_as_many_quadrants_share_a_texture_as_the_class_says() -> None:
    images, labels = SharedTextures(noise=0.0).batch(0, seed=3, batch_size=200)
    found = spectrum(quadrants_of(images))  # [B, 4]
    alike = [sorted(Counter(kinds).values(), reverse=True) for kinds in found.tolist()]
    ways = [[1, 1, 1, 1], [2, 1, 1], [2, 2], [3, 1], [4]]
    assert alike == [ways[label] for label in labels.tolist()]
    # the quadrants alone say nothing: each has each of the eight kinds, and the odd one of three is anywhere
    assert all(len(set(found[:, quadrant].tolist())) == 8 for quadrant in range(4))
    three = found[labels == 3]
    odd = (three[:, :, None] == three[:, None]).sum(2).argmin(1)
    assert set(odd.tolist()) == {0, 1, 2, 3}


def test_marked_corners_have_one_colour_in_the_classes_that_say_so() -> None:
    images, labels = MarkedCorners(noise=0.0).batch(0, seed=3, batch_size=400)
    ends = (slice(0, 8), slice(24, 32))
    corners = torch.stack([images[:, :, down, right] for down in ends for right in ends], 1).flatten(3)  # [B, 4, 3, 64]
    is_marked = (corners == corners[..., :1]).all(3).all(2)
    assert (is_marked.sum(1) == 2).all()
    colours = corners[..., 0]  # [B, 4, 3]
    first, second = colours[is_marked].unflatten(0, (-1, 2)).unbind(1)
    assert torch.equal((first == second).all(1), labels >= 2)
    middle = images[:, 0, 10:22, 10:22]
    changes_down = (middle - middle[:, :1]).abs().amax((1, 2)) > 0.1
    assert torch.equal(changes_down, labels % 2 == 0)
    # one corner says nothing: it is marked as often, with each of four colours, in both classes
    for is_same in (labels >= 2, labels < 2):
        seen = colours[is_same & is_marked[:, 0], 0]
        assert len(seen) == pytest.approx(0.5 * int(is_same.sum()), rel=0.2)
        counts = torch.unique(seen, dim=0, return_counts=True)[1]
        assert len(counts) == 4
        assert (counts > 0.15 * len(seen)).all()


def test_gratings_have_the_wavelengths_and_directions_that_they_say() -> None:
    waves = gratings(torch.arange(8), 16, torch.Generator().manual_seed(0))
    assert waves.abs().max() <= 1
    for kind, length in ((0, 4), (4, 8)):
        torch.testing.assert_close(waves[kind, length:], waves[kind, :-length], rtol=0, atol=1e-5)
        torch.testing.assert_close(waves[kind, :, 1:], waves[kind, :, :-1], rtol=0, atol=1e-5)
        torch.testing.assert_close(waves[kind + 2, :, length:], waves[kind + 2, :, :-length], rtol=0, atol=1e-5)
    # along a diagonal, a step down and one to the left change nothing; along the other, one down and one to the right
    torch.testing.assert_close(waves[1, 1:, :-1], waves[1, :-1, 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(waves[3, 1:, 1:], waves[3, :-1, :-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [12, 34])
def test_sizes_without_quarters_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"MarkedCorners: image_size must be a multiple of 4 .* got {size}"):
        MarkedCorners(image_size=size)
