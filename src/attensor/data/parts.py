"""Names of the parts of a data set: what its owner has set apart for training, validation and testing."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["TEST", "TRAIN", "VALIDATION", "part_of", "split_of"]

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_PARTS = {
    TRAIN: ("train", "training", "trn"),
    VALIDATION: ("val", "valid", "validation", "validate", "dev", "devel", "development", "holdout", "heldout"),
    TEST: ("test", "testing", "tst", "eval", "evaluation"),
}
_PART_OF = {name: part for part, names in _PARTS.items() for name in names}
_FILLER = re.compile(r"(?:data)?set|data|images?|imgs?|split|texts?|files?")


def part_of(name: str) -> str | None:
    """`"train"`, `"validation"`, `"test"`, or None for a name that is none of a part.

    Case, numbers, punctuation and words like `set` do not count: `Train`, `val2017`, `test_images`, `held-out`.
    """
    words = [word for word in re.findall(r"[^\W\d_]+", name.lower()) if not _FILLER.fullmatch(word)]
    joined = "".join(words)
    return _PART_OF.get(joined) or _PART_OF.get(re.sub(rf"(?:{_FILLER.pattern})$", "", joined))


def split_of(names: Iterable[str]) -> tuple[str, str] | None:
    """Which of the names is trained on and which is held out; None unless there is exactly one of each.

    Of validation and test, validation is held out: what chooses a learning rate must not have seen the test.
    """
    by_part: dict[str | None, list[str]] = {}
    for name in names:
        by_part.setdefault(part_of(name), []).append(name)
    train, held = by_part.get(TRAIN, []), by_part.get(VALIDATION) or by_part.get(TEST, [])
    return (train[0], held[0]) if len(train) == len(held) == 1 else None
