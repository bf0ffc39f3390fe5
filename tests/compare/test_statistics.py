"""Intervals and pairs on results whose truth is known, against scipy, and against what a sceptic would try."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from attensor.compare.pairs import compared
from attensor.compare.spread import shared
from attensor.compare.statistics import Sample, difference, estimate, samples, score, unit_weights
from tests.compare.made_results import Truth, made_results

EQUAL = dict.fromkeys("abcde", 0.0)


def sample(name, *scores):
    return Sample(name, dict(enumerate(scores)))


def test_without_units_it_is_the_paired_t_test():
    stats = pytest.importorskip("scipy.stats")
    a, b = (2.1, 2.13, 2.08), (2.2, 2.19, 2.21)
    found = difference(sample("a", *a), sample("b", *b), None)
    expected = stats.ttest_rel(b, a)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.interval() == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9)
    assert found.value == pytest.approx(sum(b) / 3 - sum(a) / 3)


def test_without_a_common_seed_it_is_welchs():
    stats = pytest.importorskip("scipy.stats")
    a, b = Sample("a", {0: 2.1, 1: 2.13, 2: 2.08}), Sample("b", {5: 2.2, 6: 2.29})
    expected = stats.ttest_ind(list(b.scores.values()), list(a.scores.values()), equal_var=False)
    assert difference(a, b, None).p == pytest.approx(expected.pvalue, rel=1e-9)


def test_units_add_their_variance():
    """Units of equal weight, seeds that agree: the standard error of the mean over the units."""
    units = torch.tensor([0.1, -0.2, 0.4, 0.3, 0.05], dtype=torch.float64)
    one = Sample("a", {0: 0.13, 1: 0.13}, {0: units, 1: units})
    found = estimate(one, torch.full((5,), 0.2, dtype=torch.float64))
    assert found.units == pytest.approx(float(units.var()) / 5)
    assert found.units_freedom == pytest.approx(4)
    assert found.seeds == 0


def test_one_large_file_is_all_that_counts():
    """With nearly all bytes in one file, no number of small ones makes the mean sure."""
    units = torch.cat([torch.zeros(1), torch.tensor([0.5, -0.5]).repeat(10)]).double()
    weights = torch.tensor([0.9] + [0.005] * 20, dtype=torch.float64)
    one = Sample("a", {0: 0.0, 1: 0.0}, {0: units, 1: units})
    assert estimate(one, weights).units_freedom < 1.1


def test_the_interaction_counts_once():
    """Noise of a seed on a unit is in the spread over seeds and in that over units: twice the truth if both counted.

    The larger of the two is more than either on average: of 1 and a chi square of two degrees over two, 1 + 1 / e.
    """
    truth = Truth({"a": 0.0}, seed_sd=0, common_sd=0, unit_sd=0, difficulty_sd=0, noise_sd=0.1, tail=0, units=50)
    found = []
    for seed in range(300):
        results = made_results(truth, seed)
        found.append(estimate(samples(results)[0], unit_weights(results)))
    mean = sum(one.seeds + one.units for one in found) / len(found)
    assert mean == pytest.approx((1 + math.exp(-1)) * 0.1**2 / 50 / 3, rel=0.1)


@pytest.mark.parametrize("kind", ["files", "images", "one unit"])
def test_the_interval_of_a_difference_holds_the_truth(kind):
    """95 % of them, for ordinary sizes; more for a few heavy files."""
    shapes = {
        "files": {},
        "images": {"units": 200, "tail": 0.0, "noise_sd": 0.3},
        "one unit": {"units": 1, "unit_sd": 0},
    }
    truth, inside = Truth({"a": 0.0, "b": 0.04}, **shapes[kind]), 0
    for seed in range(400):
        results = made_results(truth, seed)
        low, high = difference(*samples(results), unit_weights(results)).interval()
        inside += low <= 0.04 <= high
    assert inside >= 0.92 * 400


def test_a_score_has_its_interval_in_its_own_direction():
    results = made_results(Truth({"a": 0.0, "b": 0.1}), 3)
    for row in results["mechanisms"]:
        for run in row["runs"]:
            run["units"] = [1 - unit / 4 for unit in run["units"]]
            run["final"]["1x"] = 1 - run["final"]["1x"] / 4
    worse = made_results(Truth({"a": 0.0, "b": 0.1}), 3)
    results["quality"] |= {"metric": "accuracy", "lower_is_better": False}
    right, bits = (score(r, samples(r)[0], unit_weights(r)) for r in (results, worse))
    assert right["low"] < right["mean"] < right["high"]
    assert [right["low"], right["mean"], right["high"]] == pytest.approx(
        [1 - bits["high"] / 4, 1 - bits["mean"] / 4, 1 - bits["low"] / 4]
    )
    assert right["spread"] == pytest.approx(bits["spread"] / 4)
    assert compared(samples(results), unit_weights(results)).order == ("a", "b")


@pytest.mark.parametrize("change", ["units null", "no weights", "a null among them", "another count"])
def test_seeds_alone_where_units_are_missing(change):
    results = made_results(Truth(EQUAL))
    if change == "no weights":
        results["quality"].pop("units")
    for run in results["mechanisms"][0]["runs"]:
        if change != "no weights":
            run["units"] = {"units null": None, "another count": [1.0, 2.0]}.get(change, [None, *run["units"][1:]])
    found = estimate(samples(results)[0], unit_weights(results))
    assert found.units == 0
    assert found.seeds > 0


def test_one_seed_has_no_interval_and_decides_nothing():
    results = made_results(Truth({"a": 0.0, "b": 1.0}, seeds=1))
    found = samples(results)
    assert score(results, found[0], unit_weights(results))["low"] is None
    (pair,) = compared(found, unit_weights(results)).shown
    assert (pair.p, pair.is_decided, pair.as_row()["low"]) == (1.0, False, None)


def test_who_lacks_a_seed_or_failed_has_no_score():
    results = made_results(Truth(EQUAL))
    results["mechanisms"][1]["runs"].pop()
    results["mechanisms"][2]["status"] = "failed"
    results["mechanisms"][3]["runs"][0]["final"]["1x"] = None
    assert [one.name for one in samples(results)] == ["a", "e"]


def test_an_interval_leaves_out_zero_exactly_when_the_pair_is_decided():
    for seed in range(60):
        results = made_results(Truth(dict(zip("abcdef", [0, 0, 0.02, 0.04, 0.06, 0.06]))), seed)
        for pair in compared(samples(results), unit_weights(results)).pairs.values():
            assert pair.found.value >= 0
            assert pair.is_decided == (pair.as_row()["low"] > 0), pair


def test_holm_is_that_of_its_paper():
    """Adjusted p: the largest so far of (m - i) p_(i)."""
    results = made_results(Truth(dict(zip("abcd", [0, 0.02, 0.04, 0.06]))), 5)
    pairs = compared(samples(results), unit_weights(results)).pairs.values()
    raw, expected = sorted((pair.found.p, pair.p) for pair in pairs), []
    for rank, (p, _) in enumerate(raw):
        expected.append(max([*expected, min(1.0, (6 - rank) * p)]))
    assert [adjusted for _, adjusted in raw] == pytest.approx(expected)


def test_groups_are_what_is_not_decided_against_their_first():
    results = made_results(Truth(dict(zip("abcdef", [0, 0.001, 0.06, 0.061, 0.2, 0.4])), tail=0.3), 0)
    found = compared(samples(results), unit_weights(results))
    groups = [sorted(group) for group in found.groups]
    assert groups == [["a", "b"], ["c", "d"], ["e"], ["f"]]
    for group in found.groups:
        assert not any(found.is_worse(name, group[0]) for name in group[1:])
    assert {(pair.better, pair.worse) for pair in found.shown} == {
        *((found.order[0], name) for name in found.order[1:]),
        *zip(found.order, found.order[1:], strict=False),
    }


def test_a_restless_mechanism_does_not_hide_the_others():
    calm = [sample(n, x, x + 0.01, x - 0.01 + i / 300) for i, (n, x) in enumerate(zip("abcd", (2.0, 2.06, 2.12, 2.18)))]
    wild = sample("wild", 2.4, 9.0, 3.0)
    assert shared(calm) == shared([*calm, wild])
    decided = [compared(found, None).is_worse("d", "a") for found in (calm, [*calm, wild])]
    assert decided == [True, True]
    assert not compared([*calm, wild], None).is_worse("wild", "a")


def test_the_shared_spread_is_never_below_the_mean_of_all():
    names = dict(zip("abcde", (0.0, 0.0, 0.0, 0.0, 0.0)))
    for seed in range(20):
        found = samples(made_results(Truth(names), seed))
        common = shared(found)
        variances = [difference(a, b, None).seeds * 3 for a, b in combinations(found, 2)]
        if common.names == names.keys():
            assert common.variance == pytest.approx(sum(variances) / len(variances))
            for a, b in combinations(found, 2):
                moderated = common.moderated((a, b), difference(a, b, None))
                assert moderated.seeds >= common.variance / 3 * (1 - 1e-12)
                assert moderated.seeds_freedom == common.freedom + 2 <= 8


def test_two_mechanisms_share_nothing():
    found = samples(made_results(Truth({"a": 0.0, "b": 0.0})))
    assert shared(found).freedom == 0
    pair = difference(*found, None)
    assert shared(found).moderated((found[0], found[1]), pair) == pair


def test_equal_scores_are_no_difference_and_equal_seeds_are_sure():
    same, apart = sample("a", 2.0, 2.1, 2.2), sample("b", 2.1, 2.2, 2.3)
    assert difference(same, same, None).p == 1.0
    assert difference(same, apart, None).value == pytest.approx(0.1)
    assert math.isclose(difference(same, apart, None).error, 0, abs_tol=1e-12)
