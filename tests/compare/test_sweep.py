"""A sweep over ratios and places of two mechanisms is a list of names that the plan understands."""

from __future__ import annotations

import pytest

from attensor.catalogue import Domain
from attensor.compare.subjects import resolve
from attensor.compare.sweep import expanded


def names(wanted):
    return [subject.name for subject in resolve(wanted, Domain.SEQUENCE)]


def test_ratios_and_places_in_eight_layers():
    assert expanded("sweep:gla+softmax") == [
        *("gla", "softmax", "gla+softmax", "3*gla+softmax", "7*gla+softmax"),
        *("softmax+7*gla", "4*gla+softmax+3*gla"),
    ]


def test_a_smaller_ratio_needs_fewer_layers():
    assert expanded("sweep:3*gla+softmax") == [
        *("gla", "softmax", "gla+softmax", "3*gla+softmax"),
        *("softmax+3*gla", "2*gla+softmax+gla"),
    ]
    assert expanded("sweep:1*gla+softmax") == ["gla", "softmax", "gla+softmax", "softmax+gla"]


@pytest.mark.parametrize("most", [1, 3, 7, 15])
def test_all_fill_models_of_one_depth_with_what_they_say(most):
    """The periods divide the depth, and a placed layer is there once."""
    for subject in resolve(f"sweep:{most}*gla+softmax", Domain.SEQUENCE):
        assert (most + 1) % subject.period == 0
        assert subject.period == 1 or subject.layers.count("softmax") == 1
    swept = [s.layers for s in resolve(f"sweep:{most}*gla+softmax", Domain.SEQUENCE)]
    places = {layers.index("softmax") for layers in swept if len(layers) == most + 1}
    assert {0, most} <= places


def test_what_is_named_too_comes_once():
    assert names("softmax, sweep:1*gla+softmax, linear") == ["softmax", "linear", "gla", "gla+softmax", "softmax+gla"]
    assert len(names("sweep:1*gla+softmax,sweep:1*linear+softmax")) == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweep:gla", "a sweep is of two mechanisms"),
        ("sweep:", "a sweep is of two mechanisms"),
        ("sweep:gla+gla", "a sweep is of two mechanisms"),
        ("sweep:gla+softmax+linear", "a sweep is of two mechanisms"),
        ("sweep:5*gla+softmax", "must be 1, 3, 7, 15, 31 or 63, and is 5"),
        ("sweep:0*gla+softmax", "and is 0"),
        ("sweep:127*gla+softmax", "and is 127"),
        ("sweep:gal+softmax", "gal"),
    ],
)
def test_other_sweeps_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        resolve(text, Domain.SEQUENCE)
