"""Cluttered digits: pure functions of their arguments, digits whole and everywhere, held-out ones apart."""

from __future__ import annotations

import pytest
import torch

from attensor.data.cluttered import ClutteredDigits
from attensor.data.images import open_images


def test_a_batch_is_a_pure_function_of_its_arguments() -> None:
    data = ClutteredDigits()
    images, labels = data.batch(5, seed=1, batch_size=7)
    assert images.shape == (7, 1, 32, 32)
    assert images.dtype == torch.float32
    data.batch(6, seed=1, batch_size=7)
    again, same = ClutteredDigits().batch(5, seed=1, batch_size=7)
    assert torch.equal(images, again)
    assert torch.equal(labels, same)
    for other in (data.batch(6, seed=1, batch_size=7)[0], data.batch(5, seed=2, batch_size=7)[0]):
        assert not torch.equal(images, other)


def test_digits_are_whole_and_reach_every_corner() -> None:
    """Without noise each image holds one digit, unchanged, and places cover the whole image."""
    data = ClutteredDigits(image_size=21, digit_size=16, noise=0.0)
    images, labels = data.batch(0, seed=3, batch_size=300)
    digits, same = open_images("digits", image_size=16, selection=0.0).batch(0, seed=3, batch_size=300)
    assert torch.equal(labels, same)
    torch.testing.assert_close(images.sum((1, 2, 3)), (digits / 2 + 0.5).sum((1, 2, 3)))
    windows = images.unfold(2, 16, 1).unfold(3, 16, 1).flatten(1, 3)  # [B, 36, 16, 16]
    found = (windows - (digits / 2 + 0.5)).abs().amax((2, 3)).argmin(1)
    assert set(found.tolist()) == set(range(36))


def test_noise_has_the_given_size() -> None:
    noisy, clean = (ClutteredDigits(noise=noise).batch(0, seed=0, batch_size=100)[0] for noise in (0.15, 0.0))
    assert (noisy - clean).std() == pytest.approx(0.15, rel=0.02)


def test_held_out_images_stay_the_same_and_are_not_trained_on() -> None:
    data = ClutteredDigits()
    batches = list(data.held_out_batches(100))
    for (images, labels), (again, same) in zip(batches, data.held_out_batches(100), strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
    digits = open_images("digits", image_size=16, selection=0.0)
    assert sum(len(labels) for _, labels in batches) == digits.test_images


def test_digits_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="digit_size 16 does not fit image_size 12"):
        ClutteredDigits(image_size=12)
