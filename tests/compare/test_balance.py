"""The MLP's width brings models with different mixers to the same number of parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attensor.compare.balance import balanced_mlp_size, parameter_count


def model(mixer_size, width):
    """10 x 10 x mixer_size + 2 x 10 x width weights."""
    linear = [nn.Linear(10, 10 * mixer_size, bias=False), nn.Linear(10, width, bias=False)]
    return nn.Sequential(*linear, nn.Linear(width, 10, bias=False))


@pytest.mark.parametrize("mixer_size", [1, 3, 4, 7, 11])
def test_within_two_percent(mixer_size):
    target = parameter_count(model(4, 43))
    width, count = balanced_mlp_size(lambda w: model(mixer_size, w), target)
    assert count == parameter_count(model(mixer_size, width))
    assert abs(count - target) <= 0.02 * target


def test_the_reference_keeps_its_own_width():
    assert balanced_mlp_size(lambda w: model(4, w), parameter_count(model(4, 176)))[0] == 176


def test_a_mixer_that_is_too_large_is_refused_with_numbers():
    with pytest.raises(ValueError, match=r"cannot be balanced: with an MLP of width 1 .* 10,020, the reference 1,260"):
        balanced_mlp_size(lambda w: model(100, w), parameter_count(model(4, 43)))


def test_a_mixer_that_reads_values_while_it_is_built_is_counted_too():
    def build(width):
        weights = torch.ones(3)
        return model(int(weights.sum()), width)

    target = parameter_count(model(4, 43))
    assert abs(balanced_mlp_size(build, target)[1] - target) <= 0.02 * target
