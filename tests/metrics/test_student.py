"""Student's t against scipy, against exact values, and against itself."""

from __future__ import annotations

import math

import pytest

from attensor.metrics.student import t_quantile, two_sided_p

FREEDOMS = [0.3, 1.0, 1.7, 2.0, 3.9, 8.0, 31.4, 299.5, 300.5, 4321.0, 2e6]


@pytest.mark.parametrize("freedom", FREEDOMS)
@pytest.mark.parametrize("t", [1e-6, 0.02, 0.7, 2.3, 5.1, 19.0])
def test_tails_are_those_of_scipy(t, freedom):
    stats = pytest.importorskip("scipy.stats")
    expected = 2 * stats.t.sf(t, freedom)
    assert two_sided_p(t, freedom) == pytest.approx(expected, rel=1e-8, abs=1e-13)
    assert two_sided_p(-t, freedom) == two_sided_p(t, freedom)


@pytest.mark.parametrize("freedom", FREEDOMS)
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.975, 0.9995])
def test_quantiles_are_those_of_scipy(probability, freedom):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.t.ppf(probability, freedom)
    assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_one_degree_is_the_arctangent():
    """Cauchy's distribution: P(|T| >= t) = 1 - 2 atan(t) / pi."""
    assert two_sided_p(3.0, 1.0) == pytest.approx(1 - 2 * math.atan(3.0) / math.pi, rel=1e-13)


def test_the_ends():
    assert two_sided_p(0.0, 2.0) == 1.0
    assert two_sided_p(math.inf, 2.0) == 0.0
    assert two_sided_p(1.96, math.inf) == pytest.approx(0.04999579, rel=1e-6)
