"""Who is named best, who is not, and when nobody may be."""

from __future__ import annotations

import math

import pytest

from attensor.compare.ranking import rank
from tests.compare.made_results import Truth, made_results

CLEAR = {"a": 0.0, "b": 0.2, "c": 0.4}


def truth(gaps=CLEAR, **more):
    return Truth(gaps, **{"tail": 0.3, "unit_sd": 0.01, **more})


def test_a_clear_order_is_named():
    field = rank(made_results(truth())).as_field()
    assert (field["withheld"], field["groups"], field["smallest_p"]) == (None, [["a"], ["b"], ["c"]], 0.25)
    assert [(p["better"], p["worse"], p["decided"]) for p in field["pairs"]] == [
        *(("a", "b", True), ("a", "c", True), ("b", "c", True))
    ]
    assert field["minutes_to_decide"] is None
    assert "the choice of the 40 test files is added; p after Holm for 3 comparisons" in field["test"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"b": {"steps": 10}}, "10 training steps a seed, fewer than 50"),
        ({"b": {"steps": 1}}, "1 training step a seed"),
        ({"c": {"load": 1.8}}, "c took 1.8 times as long"),
        ({"results": {"references": [{"name": "unigram", "title": "", "score": 1.9, "reason": None}]}}, "are noise"),
    ],
    ids=["steps", "one step", "load", "noise"],
)
def test_nobody_is_best_while_it_is_withheld(changes, reason):
    ranking = rank(made_results(truth(), **changes))
    field = ranking.as_field()
    assert reason in field["withheld"]
    assert ranking.best is None
    assert field["groups"] == [["a", "b", "c"]]
    assert not any(pair["decided"] for pair in field["pairs"])
    if field["equal_time"] is not None:  # not known where a run is shorter than the first point of another's curve
        assert [sorted(group) for group in field["equal_time"]["groups"]] == [["a", "b", "c"]]
        assert not field["equal_time"]["changes_order"]


def test_the_load_of_one_seed_is_enough():
    results = made_results(truth())
    results["mechanisms"][0]["runs"][2]["load"] = 1.6
    assert "a took 1.6 times as long" in rank(results).withheld


@pytest.mark.parametrize("lower", [True, False])
def test_scores_no_better_than_chance_are_noise(lower):
    results = made_results(truth())
    results["quality"] |= {"lower_is_better": lower, "chance": 1.5 if lower else 3.0}
    assert "no mechanism is better than chance" in rank(results).withheld
    results["quality"]["chance"] = 3.0 if lower else 1.5
    assert rank(results).withheld is None


@pytest.mark.parametrize(("names", "reason"), [((), "no mechanism has been trained"), (("a",), "only one mechanism")])
def test_fewer_than_two_scores_are_no_ranking(names, reason):
    gone = {name: {"runs": [], "status": "unfinished"} for name in CLEAR if name not in names}
    field = rank(made_results(truth(), **gone)).as_field()
    assert field["withheld"].startswith(reason)
    assert (field["pairs"], field["equal_time"]) == ([], None)
    assert field["groups"] == [list(names)] * bool(names)


def test_one_seed_is_no_ranking():
    field = rank(made_results(truth(seeds=1))).as_field()
    assert field["withheld"] == "one seed, which shows no spread"
    assert field["smallest_p"] == 1.0


def test_a_slow_mechanism_falls_behind_at_equal_time():
    """b learns as fast by the step; a takes 8 times as long for a step and is a little better after as many."""
    gaps = {"a": 0.0, "b": 0.05, "c": 0.3}
    ranking = rank(made_results(truth(gaps, seed_sd=0.003), a={"seconds_per_step": 0.08}))
    field = ranking.as_field()
    assert field["groups"][0] == ["a"]
    assert field["equal_time"]["groups"][0] == ["b"]
    assert field["equal_time"]["changes_order"]
    assert field["equal_time"]["seconds"] == pytest.approx(4.0)


def test_the_same_pace_is_the_same_order():
    field = rank(made_results(truth())).as_field()
    assert field["equal_time"]["groups"] == field["groups"]
    assert not field["equal_time"]["changes_order"]


def test_an_unknown_pace_leaves_equal_time_open():
    field = rank(made_results(truth(), b={"seconds_per_step": None})).as_field()
    assert field["equal_time"] is None
    assert field["groups"] == [["a"], ["b"], ["c"]]


def test_more_seeds_decide_what_seeds_can_decide():
    """After the minutes that it asks for, the pair is decided in most draws."""
    gaps, asked, decided = {"a": 0.0, "b": 0.015}, 0, 0
    for seed in range(60):
        ranking = rank(made_results(truth(gaps, unit_sd=0.001, noise_sd=0.001), seed))
        if ranking.minutes is None or math.isinf(ranking.minutes):
            continue
        seeds = 3 + round(ranking.minutes * 60 / 8)  # 400 steps of 0.01 s for each of two
        again = rank(
            made_results(truth({"a": 0.0, "b": 0.015}, unit_sd=0.001, noise_sd=0.001, seeds=seeds), 1000 + seed)
        )
        asked, decided = asked + 1, decided + (again.best == "a")
    assert asked >= 20
    assert decided >= 0.5 * asked


def test_what_the_test_data_cannot_tell_no_seed_decides():
    ranking = rank(made_results(truth({"a": 0.0, "b": 0.01}, seed_sd=0.0001, unit_sd=0.1, noise_sd=0.0), 4))
    assert math.isinf(ranking.minutes)
    assert ranking.as_field()["minutes_to_decide"] is None
