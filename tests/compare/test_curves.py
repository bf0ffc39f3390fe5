"""Equal time and the effective speed-up on curves that are known by formula."""

from __future__ import annotations

import pytest

from attensor.compare.curves import equal_time, equal_time_seconds, speedup
from attensor.compare.pairs import compared
from attensor.compare.statistics import samples, unit_weights
from tests.compare.made_results import Truth, made_results

QUIET = {"seed_sd": 0.001, "unit_sd": 0.001, "noise_sd": 0.001, "tail": 0.0, "common_sd": 0.0}


def curve_cost(tokens, final, last=409_600):
    """The formula of the made curves, ending at `final`."""
    return final + 2 * ((tokens / 1000) ** -0.4 - (last / 1000) ** -0.4)


def test_equal_time_reads_the_share_of_the_time():
    results = made_results(Truth({"a": 0.0, "b": 0.0}, **QUIET), a={"seconds_per_step": 0.04})
    found = samples(results)
    assert equal_time_seconds(results) == pytest.approx(4.0)
    slow, fast = equal_time(results, found)
    assert fast.scores == found[1].scores
    for seed, score in slow.scores.items():
        assert score == pytest.approx(curve_cost(409_600 / 4, found[0].scores[seed]), abs=0.01)
        assert score > found[0].scores[seed] + 0.1


def test_a_point_of_the_curve_is_read_exactly():
    results = made_results(Truth({"a": 0.0, "b": 0.0}, **QUIET))
    curve = results["mechanisms"][0]["runs"][0]["curve"]
    results["mechanisms"][0]["seconds_per_step"] = 0.01 * 400 / curve[5]["step"]
    slow = equal_time(results, samples(results))[0]
    shift = samples(results)[0].scores[0] - curve[-1]["score"]
    assert slow.scores[0] == pytest.approx(curve[5]["score"] + shift, rel=1e-12)


def test_before_the_first_point_nothing_is_read():
    results = made_results(Truth({"a": 0.0, "b": 0.0}, **QUIET), a={"seconds_per_step": 10.0})
    assert [one.name for one in equal_time(results, samples(results))] == ["b"]


def factors(gaps, **more):
    results = made_results(Truth({"softmax": 0.0, **gaps}, **{**QUIET, **more}))
    found = samples(results)
    return speedup(results, found, compared(found, unit_weights(results)), "softmax")


@pytest.mark.parametrize("share", [0.1, 0.4, 0.99, 1.5, 3.0])
def test_the_factor_is_that_of_the_formula(share):
    """A score that the baseline has after this share of its tokens, and beyond its end by the fitted law."""
    gap = curve_cost(share * 409_600, 0.0)
    factor = factors({"a": gap})["a"]
    # straight lines between twelve points, and a law through six of them
    assert factor["factor"] == pytest.approx(share, rel=0.05 if share < 1 else 0.1)
    assert factor["low"] < factor["factor"] < (factor["high"] or 5)


def test_beyond_four_times_it_is_at_least_that():
    factor = factors({"a": curve_cost(6 * 409_600, 0.0)})["a"]
    assert (factor["factor"], factor["high"]) == (4.0, None)
    assert 1 < factor["low"] <= 4


def test_noise_widens_the_factor():
    quiet, loud = factors({"a": -0.05})["a"], factors({"a": -0.05}, seed_sd=0.03)["a"]
    assert loud["high"] is None or loud["high"] - loud["low"] > quiet["high"] - quiet["low"]


def test_without_a_baseline_or_a_score_there_is_no_factor():
    results = made_results(Truth({"a": 0.0, "b": 0.1}, **QUIET))
    found = samples(results)
    assert speedup(results, found, compared(found, None), "softmax") == {"a": None, "b": None}
    results = made_results(Truth({"softmax": 0.0, "b": 0.1}, **QUIET), b={"runs": []})
    found = samples(results)
    assert speedup(results, found, compared(found, None), "softmax") == {"b": None}


def test_a_flat_baseline_never_gets_better():
    results = made_results(Truth({"softmax": 0.0, "b": -0.1}, **QUIET))
    for run in results["mechanisms"][0]["runs"]:
        for point in run["curve"]:
            point["score"] = 2.0
    found = samples(results)
    assert speedup(results, found, compared(found, None), "softmax")["b"]["factor"] == 4.0


@pytest.mark.parametrize("lower", [True, False])
def test_accuracies_are_read_the_right_way_round(lower):
    results = made_results(Truth({"softmax": 0.0, "b": -0.05}, **QUIET), b={"seconds_per_step": 0.02})
    if not lower:
        results["quality"] |= {"metric": "accuracy", "lower_is_better": False}
        for row in results["mechanisms"]:
            for run in row["runs"]:
                run["units"] = [-unit for unit in run["units"]]
                run["final"] = {key: -value for key, value in run["final"].items()}
                for point in run["curve"]:
                    point["score"] *= -1
    found = samples(results)
    comparison = compared(found, unit_weights(results))
    assert speedup(results, found, comparison, "softmax")["b"]["factor"] == pytest.approx(1.9, abs=0.3)
    assert equal_time(results, found)[1].mean > found[1].mean
