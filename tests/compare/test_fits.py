"""Exponents on numbers whose answer is known."""

from __future__ import annotations

import pytest

from attensor.compare.fits import exponent, power_law

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_its_power(power):
    points = [(n, 3.0 * n**power) for n in LENGTHS]
    assert exponent(points[::-1]) == pytest.approx(power)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_constant_cost_does_not_hide_the_growth(power):
    points = [(n, 5.0 + (n / 1000) ** power) for n in LENGTHS]
    law = power_law(points)
    assert (law.constant, law.exponent) == pytest.approx((5.0, power))
    assert (law.error, law.deviation) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert exponent(points) == pytest.approx(power)


def test_a_linear_cost_that_jumps_has_no_exponent():
    """One layer measured where freed memory went back to the system: linear below 8192, and above, not between."""
    jumps = [0.97, 1.33, 2.32, 4.47, 8.39, 22.7, 48.45]
    assert exponent(list(zip(LENGTHS, jumps, strict=True))) is None
    # the same layer where it was kept
    steady = [1.38, 1.73, 2.71, 5.28, 10.44, 21.33, 41.94]
    assert exponent(list(zip(LENGTHS, steady, strict=True))) == pytest.approx(1.0, abs=0.02)


def test_another_algorithm_at_short_lengths_is_left_out():
    points = [(n, 0.9 * n if n < 2048 else 3000.0 + 0.1 * n) for n in LENGTHS]
    assert exponent(points) == pytest.approx(1.0)


def test_the_standard_error_is_that_of_least_squares():
    """Independent: the variance of the exponent from the inverse of the matrix of all derivatives."""
    import torch

    costs = [7.0, 8.6, 12.1, 18.4, 33.9, 60.0, 118.0]
    law = power_law(list(zip(LENGTHS, costs, strict=True)))
    x, y = torch.tensor(LENGTHS, dtype=torch.float64), torch.tensor(costs, dtype=torch.float64)
    powers = x**law.exponent
    columns = [torch.ones_like(x) / y, powers / y, law.factor * powers * x.log() / y]
    deviations = 1 - (law.constant + law.factor * powers) / y
    assert law.deviation == pytest.approx(float((deviations.square().sum() / 4).sqrt()))
    variance = torch.linalg.inv(torch.stack(columns) @ torch.stack(columns).T)[2, 2] * law.deviation**2
    assert law.error == pytest.approx(float(variance.sqrt()), rel=1e-6)


def test_too_few_points_have_no_exponent():
    assert exponent([(256, 1.0), (512, 2.0), (1024, 4.0)]) is None
    assert exponent([(256, 1.0), (512, 0.0), (1024, 2.0), (2048, 4.0)]) is None
