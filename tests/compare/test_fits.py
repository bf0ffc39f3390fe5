"""Exponents on numbers whose answer is known."""

from __future__ import annotations

import pytest

from attensor.compare.fits import exponent


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_its_power(power):
    points = [(n, 3.0 * n**power) for n in (256, 512, 1024, 2048, 4096)]
    assert exponent(points[::-1]) == pytest.approx(power)


def test_a_constant_cost_at_short_lengths_does_not_hide_the_growth():
    points = [(n, max(5.0, (n / 1000) ** 2)) for n in (256, 512, 1024, 4096, 8192, 16384)]
    assert exponent(points) == pytest.approx(2.0)


def test_too_few_points_have_no_exponent():
    assert exponent([(256, 1.0), (512, 2.0)]) is None
    assert exponent([(256, 1.0), (512, 0.0), (1024, 2.0)]) is None
