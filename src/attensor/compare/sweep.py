"""`sweep:gla+softmax`: two mechanisms in one model, at several ratios and with the rare one at several places."""

from __future__ import annotations

import re

__all__ = ["SWEEP", "expanded"]

SWEEP = "sweep:"
_DEFAULT_MOST = 7
_MOST = 63


def expanded(text: str) -> list[str]:
    """The names that a sweep stands for, each once.

    `sweep:gla+softmax` gives both alone, the ratios 1:1, 3:1 and 7:1 with softmax last in each period, and, in eight
    layers, one softmax as the first and in the middle (as the last it is 7:1). `sweep:3*gla+softmax` goes up to 3:1,
    in four layers.

    Args:
        text: with the word `sweep:`.
    Raises:
        ValueError: text of another form, or a ratio that is none of 1, 3, 7, 15, 31, 63.
    """
    form = re.fullmatch(r"(?:(\d{1,9})\s*\*\s*)?([^+*\s]+)\s*\+\s*([^+*\s]+)", text.removeprefix(SWEEP).strip())
    if form is None or form[2] == form[3]:
        raise ValueError(
            f"--mechanisms {text}: a sweep is of two mechanisms, the frequent one first: sweep:gla+softmax, or "
            "sweep:3*gla+softmax for ratios up to 3:1."
        )
    most, often, seldom = int(form[1] or _DEFAULT_MOST), form[2], form[3]
    # periods are powers of two, so that all of them fill models of one depth
    ratios = [2**power - 1 for power in range(1, (most + 1).bit_length()) if 2**power - 1 <= most]
    if not ratios or ratios[-1] != most or most > _MOST:
        raise ValueError(f"--mechanisms {text}: the highest ratio must be 1, 3, 7, 15, 31 or 63, and is {most}.")
    middle = (most + 1) // 2
    names = [often, seldom, *(_stack(often, seldom, ratio, 0) for ratio in ratios)]
    names += [_stack(often, seldom, 0, most), _stack(often, seldom, middle, most - middle)]
    return list(dict.fromkeys(names))


def _stack(often: str, seldom: str, before: int, after: int) -> str:
    """`4*gla+softmax+3*gla`: layers of the frequent one before and after one layer of the other."""

    def counted(count: int) -> list[str]:
        return [often if count == 1 else f"{count}*{often}"] if count else []

    return "+".join([*counted(before), seldom, *counted(after)])
