"""Learning rates: the grid grows until the best is inside, in either direction, and stops somewhere."""

from __future__ import annotations

import math

import pytest

from attensor.compare.artefacts import Pilot
from attensor.compare.pilots import best_pilot, is_at_edge, next_rate

FIRST = (0.02, 0.06, 0.18)


def tried(score, first=FIRST, *, lower_is_better=True):
    """All pilots of a mechanism whose score at a rate is `score(rate)`, None where it diverges."""
    pilots = []
    while (rate := next_rate(pilots, first, lower_is_better=lower_is_better)) is not None:
        pilots.append(Pilot(rate, 3, score(rate)))
        assert len(pilots) < 20
    return pilots


def valley(best):
    return lambda rate: 2.0 + abs(math.log(rate / best))


@pytest.mark.parametrize("best", [0.0022, 0.0067, 0.02, 0.06, 0.18, 0.54, 1.62])
@pytest.mark.parametrize("lower", [True, False])
def test_the_best_rate_ends_inside(best, lower):
    def score(rate):
        return valley(best)(rate) * (1 if lower else -1)

    pilots = tried(score, lower_is_better=lower)
    assert best_pilot(pilots, FIRST, lower_is_better=lower).learning_rate == pytest.approx(best, rel=0.02)
    assert is_at_edge(pilots, FIRST, lower_is_better=lower) is False


def test_what_is_inside_from_the_start_costs_no_more():
    assert [p.learning_rate for p in tried(valley(0.06))] == list(FIRST)


@pytest.mark.parametrize(("best", "rates"), [(1e-9, 6), (1e9, 6)])
def test_three_steps_beyond_are_the_most_and_the_edge_is_flagged(best, rates):
    pilots = tried(valley(best))
    assert len(pilots) == rates
    assert is_at_edge(pilots, FIRST, lower_is_better=True) is True


def test_rates_that_diverge_are_worse_than_any_and_all_of_them_lead_down():
    pilots = tried(lambda rate: None if rate > 0.01 else valley(0.004)(rate))
    assert best_pilot(pilots, FIRST, lower_is_better=True).learning_rate == 0.00667
    assert best_pilot(tried(lambda rate: None), FIRST, lower_is_better=True) is None
    assert len(tried(lambda rate: None)) == 6


def test_a_single_rate_is_taken_as_it_is():
    pilots = tried(valley(0.06), (0.5,))
    assert [p.learning_rate for p in pilots] == [0.5]
    assert is_at_edge(pilots, (0.5,), lower_is_better=True) is None


def test_the_order_in_which_rates_are_given_does_not_matter():
    assert {p.learning_rate for p in tried(valley(0.5))} == {p.learning_rate for p in tried(valley(0.5), FIRST[::-1])}


@pytest.mark.parametrize("lower", [True, False])
def test_the_middle_rate_stays_unless_another_is_clearly_ahead(lower):
    sign = 1 if lower else -1
    for lead, expected in ((0.002, 0.06), (0.0029, 0.06), (0.0031, 0.18), (0.1, 0.18)):
        pilots = tried(lambda rate, lead=lead: 1.0 - sign * (lead if rate == 0.18 else 0.0), lower_is_better=lower)
        assert best_pilot(pilots, FIRST, lower_is_better=lower).learning_rate == expected
