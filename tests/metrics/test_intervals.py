"""Intervals and the sign-flip test against tables, enumeration, coverage, and scipy."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch

from attensor.metrics.intervals import Interval, bootstrap_interval, sign_flip_test, t_interval

VALUES = [0.91, 0.87, 0.95, 0.9, 0.88]

# two-sided 95 % points of Student's t by degrees of freedom, from printed tables
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 15: 2.131, 30: 2.042, 60: 2.0003, 120: 1.9799}


@pytest.mark.parametrize(("freedom", "point"), T_95.items())
def test_students_interval_by_the_table(freedom, point) -> None:
    values = [(-1.0) ** i * (1 + i / 7) for i in range(freedom + 1)]
    interval = t_interval(values)
    assert interval.half_width == pytest.approx(point * statistics.stdev(values) / math.sqrt(len(values)), rel=5e-4)
    assert interval.estimate == pytest.approx(statistics.fmean(values))
    assert interval.count == freedom + 1


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("count", [2, 3, 4, 9, 32, 301, 302, 1000])
def test_students_interval_is_that_of_scipy(confidence, count) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = torch.randn(count, dtype=torch.float64).tolist()
    expected = stats.t.interval(confidence, count - 1, statistics.fmean(values), statistics.stdev(values) / count**0.5)
    actual = t_interval(values, confidence=confidence)
    assert (actual.low, actual.high) == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_one_value_has_no_interval() -> None:
    interval = t_interval([0.25])
    assert (interval.estimate, interval.count) == (0.25, 1)
    assert math.isnan(interval.low)
    assert math.isnan(interval.half_width)
    assert str(interval) == "0.250 (1 value)"
    assert str(t_interval(VALUES)) == "0.902 [0.863, 0.941] (5 values)"
    assert str(Interval(5.0, 5.0, 5.0, 2)) == "5.000 [5.000, 5.000] (2 values)"


def test_the_bootstrap_of_three_values_is_that_of_all_samples() -> None:
    """27 samples of three values: quantiles of the enumerated means."""
    values = [0.0, 1.0, 5.0]
    means = torch.tensor([sum(s) / 3 for s in itertools.product(values, repeat=3)], dtype=torch.float64)
    expected = means.quantile(torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
    interval = bootstrap_interval(values, confidence=0.8, resamples=20_001)
    assert [interval.low, interval.high] == pytest.approx(expected, abs=1e-9)
    assert interval.estimate == pytest.approx(2.0)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)


def test_the_bootstrap_covers_a_median() -> None:
    """200 sets of 40 numbers around 3: about nine in ten ranges hold it (binomial, 4 standard deviations)."""
    inside = 0
    for seed in range(200):
        values = 3 + torch.randn(40, generator=torch.Generator().manual_seed(seed)).double()
        interval = bootstrap_interval(
            values.tolist(), statistic=lambda x: x.median(-1).values, confidence=0.9, resamples=400, seed=seed
        )
        inside += interval.low <= 3 <= interval.high
    assert 0.82 <= inside / 200 <= 0.98


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("differences", [[0.3, 0.1, -0.2, 0.4], [0.1, 0.2, 0.3], [0.5, -0.5, 0.0], [-1.0]], ids=str)
def test_sign_flips_by_enumeration(differences, alternative) -> None:
    sums = [
        sum(s * d for s, d in zip(signs, differences)) for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    measure = {"two-sided": abs, "greater": float, "less": lambda x: -x}[alternative]
    expected = sum(measure(s) >= measure(sum(differences)) - 1e-9 for s in sums) / len(sums)
    result = sign_flip_test(differences, alternative=alternative)
    assert result.is_exact
    assert result.p_value == pytest.approx(expected)
    assert result.smallest == (2 if alternative == "two-sided" else 1) / len(sums)
    assert result.p_value >= result.smallest


def test_sign_flips_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    differences = (torch.randn(9, dtype=torch.float64) + 0.4).tolist()
    for alternative in ("two-sided", "greater", "less"):
        expected = stats.permutation_test(
            (differences,), lambda x, axis: x.mean(axis), permutation_type="samples", alternative=alternative,
            n_resamples=math.inf,
        ).pvalue  # fmt: skip
        assert sign_flip_test(differences, alternative=alternative).p_value == pytest.approx(expected, rel=1e-12)


def test_many_differences_are_sampled() -> None:
    """The sampled p-value is near the exact one, never zero, and repeats with its seed."""
    differences = [0.3 * (-1) ** i + 0.1 for i in range(14)]
    exact = sign_flip_test(differences)
    sampled = sign_flip_test(differences, samples=16_000)
    assert exact.is_exact
    assert not sampled.is_exact
    assert sampled.p_value == pytest.approx(exact.p_value, abs=4 * (0.25 / 16_000) ** 0.5)
    assert sampled == sign_flip_test(differences, samples=16_000)
    certain = sign_flip_test([1.0] * 70, samples=1999)
    assert certain.p_value == certain.smallest == 1 / 2000


def test_wrong_input_is_refused() -> None:
    for function in (t_interval, bootstrap_interval, sign_flip_test):
        with pytest.raises(ValueError, match="there are no values"):
            function([])
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 95"):
        t_interval(VALUES, confidence=95)
    with pytest.raises(ValueError, match="alternative must be one of 'two-sided', 'greater', 'less', got 'both'"):
        sign_flip_test(VALUES, alternative="both")
