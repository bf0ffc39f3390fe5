"""Ticks are round, have room, and stand inside the axis, which shows every value."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attensor.report.axes import axis, log_axis, places_axis, score_axis, size_axis
from attensor.report.numbers import rounded, short


@given(st.lists(st.floats(1e-4, 1e6), min_size=1, max_size=9))
def test_ticks_of_log_axes_have_room(values):
    span = math.log(max(values) / min(values))
    for make, form in ((log_axis, rounded), (size_axis, short)):
        made = make([max(v, 1) for v in values] if make is size_axis else values, form)
        gaps = [math.log(b / a) for a, b in itertools.pairwise(made.ticks)]
        assert all(gap > span / 12 for gap in gaps)
        assert len(made.ticks) == len(made.texts) <= 15
    if span > 0.5:
        assert len(log_axis(values, rounded).ticks) >= 2


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_linear_ticks_are_round_and_inside(values):
    made = axis(values)
    step = made.ticks[1] - made.ticks[0] if len(made.ticks) > 1 else 1.0
    assert made.low <= min(values) <= max(values) <= made.high
    assert 1 <= len(made.ticks) <= 11
    for tick in made.ticks:
        assert made.low - 1e-6 * abs(step) <= tick <= made.high + 1e-6 * abs(step)
        assert tick / step == pytest.approx(round(tick / step), abs=1e-6)


def test_scores_have_room_around_them():
    made = score_axis([2.0, 3.0])
    assert (made.low, made.high) == pytest.approx((1.94, 3.06))
    assert score_axis([2.0]).low < 2 < score_axis([2.0]).high


def test_places_are_named_one_by_one():
    made = places_axis([128, 256, 512], ["1x", "2x", "4x"], is_log=True)
    assert (made.ticks, made.texts) == ([128, 256, 512], ["1x", "2x", "4x"])
    assert made.low < 128 < 512 < made.high
    assert places_axis([0, 1], ["a", "b"]).low < 0
