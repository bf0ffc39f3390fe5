"""Numbers read as people write them, and what is missing is a dash."""

from __future__ import annotations

import math

import pytest

from attensor.report.numbers import DASH, count, milliseconds, rounded, short, size


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (count, 12345.6, "12,346"),
        (rounded, 0.041234, "0.0412"),
        (rounded, 1234.5, "1,230"),
        (rounded, 2.0, "2"),
        (rounded, 999.9, "1,000"),
        (rounded, 0.0, "0"),
        (rounded, -0.5, "-0.5"),
        (milliseconds, 0.0123, "12.3 µs"),
        (milliseconds, 7.0, "7 ms"),
        (milliseconds, 4321.0, "4.32 s"),
        (size, 33280, "32.5 KiB"),
        (size, 512, "512 B"),
        (size, 3 * 2**30, "3 GiB"),
        (short, 16384, "16k"),
        (short, 1000, "1000"),
        (short, 2**20, "1M"),
    ],
)
def test_numbers_have_their_unit_and_three_digits(form, value, text):
    assert form(value) == text


@pytest.mark.parametrize("form", [count, milliseconds, rounded, short, size])
@pytest.mark.parametrize("value", [None, math.nan, math.inf, "text", True])
def test_what_is_no_number_is_a_dash(form, value):
    assert form(value) == DASH
