"""Exponents, ranks, ties and leads, on numbers whose answer is known."""

from __future__ import annotations

import pytest

from attensor.compare.fits import Leader, exponent, leaders, ranked, tied


def row(name, mean, spread=0.0):
    return {"name": name, "score": None if mean is None else {"mean": mean, "spread": spread}}


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


def test_ranks_follow_the_direction_and_leave_out_the_unscored():
    rows = [row("a", 2.0), row("b", None), row("c", 1.0)]
    assert [r["name"] for r in ranked(rows, lower_is_better=True)] == ["c", "a"]
    assert [r["name"] for r in ranked(rows, lower_is_better=False)] == ["a", "c"]


def test_a_tie_is_what_the_spreads_explain():
    order = [row("a", 1.0, 0.1), row("b", 1.15, 0.06), row("c", 1.15, 0.04), row("d", 1.3, 0.3)]
    assert [r["name"] for r in tied(order)] == ["a", "b", "d"]


def test_the_lead_changes_where_the_curves_cross():
    times = {"flat": {1: 4.0, 2: 4.0, 4: 4.0, 8: 4.0}, "steep": {1: 1.0, 2: 2.0, 4: 4.1, 8: 8.0}}
    # at 4 the difference is noise, so that the old leader stays
    assert leaders(times, noise=1.15) == [Leader("steep", 1, 4), Leader("flat", 8, 8)]


def test_who_stopped_early_cannot_lead_beyond():
    times = {"quick": {1: 1.0}, "slow": {1: 9.0, 2: 9.0}}
    assert leaders(times, noise=1.15) == [Leader("quick", 1, 1), Leader("slow", 2, 2)]
