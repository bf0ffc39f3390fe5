"""A planted pair is not ranked more often than the stated error rate; a planted gap is found as often as computed."""

from __future__ import annotations

import math

import pytest

from attensor.compare.pairs import ALPHA
from attensor.compare.statistics import unit_weights
from tests.compare.made_results import Truth, made_results
from tests.compare.planted import SCENES, expected_power, rates, real_rates, simulated_rates

RUNS = 200
# of so many runs at the stated rate, more than this come by chance in one of a thousand
MOST_FALSE = ALPHA + 3.1 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)
EQUAL = [name for name, truth in SCENES.items() if len(set(truth.gaps.values())) == 1]


@pytest.mark.parametrize("name", EQUAL)
def test_equal_mechanisms_are_not_ranked(name):
    found = simulated_rates(SCENES[name], RUNS)
    assert found.false <= MOST_FALSE
    assert found.best <= MOST_FALSE


@pytest.mark.parametrize("gap", [0.02, 0.045, 0.09])
def test_a_gap_is_found_as_often_as_computed(gap):
    """Two normal approximations meet: within a tenth or so of each other."""
    truth = Truth({"best": 0.0, **dict.fromkeys("abcd", gap)}, tail=0.0)
    expected = expected_power(truth, gap, unit_weights(made_results(truth)))
    found = simulated_rates(truth, RUNS)
    assert found.false <= MOST_FALSE
    assert found.pairs == pytest.approx(expected, abs=0.12)


def test_counting():
    gaps = {"a": 0.0, "b": 0.0, "c": 1.0}
    runs = [
        {("a", "b"): False, ("a", "c"): True, ("b", "c"): True},
        {("b", "a"): True, ("a", "c"): True, ("b", "c"): True},
        {("a", "b"): False, ("c", "a"): True, ("b", "c"): False},
        {("a", "b"): False, ("a", "c"): False, ("b", "c"): False},
    ]
    found = rates(gaps, runs)
    assert (found.runs, found.false, found.best, found.found, found.pairs) == (4, 0.5, 0.25, 0.0, 0.5)
    assert rates({"a": 0.0, "b": 1.0}, [{("a", "b"): True}]).found == 1.0


@pytest.mark.slow
def test_real_runs(tmp_path):
    """One run: the gap is found, and the pair is not ranked."""
    found = real_rates(1, tmp_path)
    assert found.pairs == 1.0
    assert found.false == 0.0
