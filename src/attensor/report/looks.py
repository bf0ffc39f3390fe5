"""The look of a mechanism: one colour, mark and dash, the same in every plot, table and legend of a page.

Colours come from rings of equal lightness in Oklab, so that none stands out; each keeps a contrast of 3 : 1 or more to
the cards of both themes. A ring of `_HUES` hues is dense enough for eyes that see colours; marks and dashes tell
mechanisms apart for the others and on paper.

Source: Björn Ottosson, "A perceptual color space for image processing", 2020 (the matrices).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Identity", "contrast", "identities"]

_LONGEST_LABEL = 48
# hues in degrees, far apart from one to the next; the rings between them fill the gaps
_HUES = (255, 45, 150, 350, 95, 205, 305, 20)
# lightness, chroma, turn in degrees, dash of lines: one ring after the other
_RINGS = ((0.61, 0.150, 0, ""), (0.56, 0.125, 22, "7 4"), (0.625, 0.105, 11, "2 3"), (0.59, 0.06, 35, "9 3 2 3"))
# outlines within 8 units of the centre; nine beside eight hues, so that a pair repeats late
_MARKS = (
    "M6,0A6,6 0 1 1 -6,0A6,6 0 1 1 6,0Z",
    "M-5.3,-5.3H5.3V5.3H-5.3Z",
    "M0,-7.4L7.4,0L0,7.4L-7.4,0Z",
    "M0,-7L6.6,4.6H-6.6Z",
    "M-2.2,-6.6H2.2V-2.2H6.6V2.2H2.2V6.6H-2.2V2.2H-6.6V-2.2H-2.2Z",
    "M0,-7.4L2,-2.4L7.2,-2.2L3.1,1.1L4.5,6.2L0,3.3L-4.5,6.2L-3.1,1.1L-7.2,-2.2L-2,-2.4Z",
    "M0,7L6.6,-4.6H-6.6Z",
    "M-6.2,-3.6L0,-7.2L6.2,-3.6V3.6L0,7.2L-6.2,3.6Z",
    "M-6.5,-6.5L0,-2.8L6.5,-6.5L2.8,0L6.5,6.5L0,2.8L-6.5,6.5L-2.8,0Z",
)


@dataclass(frozen=True)
class Identity:
    """How a mechanism looks.

    Attributes:
        group: a safe identifier; label: the name, shortened; colour: `#rrggbb`.
        mark: an SVG path around (0, 0); hollow: only its outline is drawn; dash: SVG's pattern of its lines.
    """

    group: str
    label: str
    colour: str
    mark: str
    hollow: bool
    dash: str


def identities(mechanisms: Sequence[Mapping[str, Any]]) -> list[Identity]:
    """One for each mechanism, by position, so that the order of a table does not change them."""
    found = []
    for i, mechanism in enumerate(mechanisms):
        name = str(mechanism.get("name"))
        label = name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"
        ring = i // len(_HUES) % len(_RINGS)
        lightness, chroma, turn, dash = _RINGS[ring]
        colour = _oklch(lightness, chroma, _HUES[i % len(_HUES)] + turn)
        found.append(Identity(f"m{i}", label, colour, _MARKS[i % len(_MARKS)], ring % 2 == 1, dash))
    return found


def contrast(a: str, b: str) -> float:
    """The contrast of two colours `#rrggbb`, from 1 to 21 (WCAG 2.2)."""
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    linear = [_to_linear(int(colour[i : i + 2], 16) / 255) for i in (1, 3, 5)]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _to_linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)


def _from_linear(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


def _oklch(lightness: float, chroma: float, hue: float) -> str:
    """The colour with the most of that chroma that a screen has."""
    for weaker in itertools.count():
        channels = list(_channels(lightness, chroma * 0.97**weaker, math.radians(hue)))
        if all(0 <= channel <= 1 for channel in channels):
            break
    return "#" + "".join(f"{round(255 * _from_linear(channel)):02x}" for channel in channels)


def _channels(lightness: float, chroma: float, hue: float) -> Iterator[float]:
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    yield 4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short
    yield -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short
    yield -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short
