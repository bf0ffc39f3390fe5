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


def split_of(names: Iterable[str]) -> dict[str, str] | None:
    """Part -> the name that stands for it; None unless one is trained on and there is one of another, of none two."""
    by_part: dict[str, str] = {}
    for name in names:
        part = part_of(name)
        if part in by_part:
            return None
        if part is not None:
            by_part[part] = name
    return by_part if TRAIN in by_part and len(by_part) > 1 else None
