"""Lists and numbers in sentences."""

from __future__ import annotations

import pytest

from attensor.compare.words import enumerated, gap_text, plural, score_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, ""),
        (1, "a"),
        (2, "a and b"),
        (3, "a, b and c"),
        (8, "a, b, c, d, e, f, g and h"),
        (9, "a, b, c, d, e, f and 3 more"),
    ],
)
def test_lists(count, text):
    assert enumerated("abcdefghij"[:count]) == text


def test_one_is_singular():
    assert (plural(1, "seed"), plural(2, "seed"), plural(2, "entry", "entries")) == ("1 seed", "2 seeds", "2 entries")


def test_scores_and_gaps():
    assert score_text(2.1434, "bits per byte") == "2.143 bits per byte"
    assert score_text(0.9731, "accuracy") == "97.3 % right"
    assert gap_text(0.01714, "bits per byte") == "0.017 bits per byte"
    assert (gap_text(0.01, "accuracy"), gap_text(0.025, "accuracy")) == ("1 percentage point", "2.5 percentage points")
