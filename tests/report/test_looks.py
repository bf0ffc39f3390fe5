"""Every mechanism can be seen on both themes and told from every other one."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

import attensor.report
from attensor.report.looks import contrast, identities

MANY = identities([{"name": str(i)} for i in range(32)])
STYLE = (Path(attensor.report.__file__).parent / "templates" / "page.css").read_text()


def test_contrast_is_that_of_the_standard():
    """Examples of WCAG 2.2 and its neighbours."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)
    assert contrast("#ffffff", "#777777") == contrast("#777777", "#ffffff")


def test_every_colour_has_three_to_one_on_cards_and_tints_of_both_themes():
    backgrounds = re.findall(r"--(?:card|tint): (#\w{6})", STYLE)
    assert len(backgrounds) == 4
    for one, background in itertools.product(MANY, backgrounds):
        assert contrast(one.colour, background) >= 3, (one.group, one.colour, background)


def test_text_has_the_contrast_of_text():
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in STYLE.split("@media", 2)[:2])
    for theme in (light, dark):
        for text, ground in (
            ("text", "card"),
            ("quiet", "card"),
            ("quiet", "page"),
            ("quiet", "tint"),
            ("accent", "card"),
        ):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        for mood in ("warn", "good"):
            assert contrast(theme[f"{mood}-text"], theme[mood]) >= 4.5


def distance(a: str, b: str) -> float:
    """Of two colours in the cube of their channels: independent of the space that made them."""
    channels = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (a, b)]
    return sum((p - q) ** 2 for p, q in zip(*channels, strict=True)) ** 0.5


def test_no_two_of_twenty_five_look_alike():
    """Colours differ, and where two are near each other their marks differ."""
    for a, b in itertools.combinations(MANY[:25], 2):
        assert a.colour != b.colour
        assert distance(a.colour, b.colour) > 40 or (a.mark, a.hollow) != (b.mark, b.hollow)
    assert len({(one.mark, one.hollow) for one in MANY[:25]}) >= 17
    assert len({one.dash for one in MANY[:25]}) == 4
    for a, b in itertools.combinations(MANY[:8], 2):
        assert distance(a.colour, b.colour) > 40
        assert a.mark != b.mark


def test_colours_of_a_ring_are_equally_light():
    """None of the first eight stands out: their contrasts to white are within a fifth of each other."""
    contrasts = [contrast(one.colour, "#ffffff") for one in MANY[:8]]
    assert max(contrasts) < 1.25 * min(contrasts)


def test_looks_follow_the_position_and_long_names_are_shortened():
    assert identities([{"name": "a"}, {"name": "b"}])[1] == identities([{"name": "x"}, {"name": "b"}])[1]
    assert len(identities([{"name": "x" * 99}])[0].label) == 48
