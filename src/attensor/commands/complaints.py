"""What is said of a command line that cannot be read: one line, with the nearest of what can be typed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence

from attensor.catalogue import find_name
from attensor.commands.reading import without_colours
from attensor.errors import plain

__all__ = ["nearest", "of_command", "of_options"]

_MOST_CHARACTERS = 4000
# what the parser says -> what we say
_SAYINGS = {
    # a dataclass that refuses speaks of the option itself
    r"Error parsing [A-Z]\w*: (.*)": r"\1",
    r"Error parsing (\S+): no type matching .* Got errors: .*?: (.*)": r"\1: \2",
    r"Error parsing (\S+): (.*)": r"\1: \2",
    r"Missing from .*?: ((?:[A-Z][A-Z_-]*|--[\w-]+)) .*": r"\1 is missing",
    r"Missing value for argument '(\S+)'.*": r"\1 needs a value",
    r"(?i)invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*?),?\)": r"\2: \1 is none of \3",
}
_READERS = {
    r"invalid literal for int\(\) with base 10: (.*)": r"\1 is not a whole number",
    r"could not convert string to float: (.*)": r"\1 is not a number",
}


def of_command(prog: str, typed: str, known: Collection[str], others: Collection[str] = ()) -> str:
    """A word that is no command.

    Args:
        prog: `"attensor"`, or that with the group.
        typed: the word.
        known: the commands there are.
        others: what else may have been meant.
    """
    near = nearest(typed, [*known, *others])
    hint = f" Did you mean {prog} {near}?" if near else ""
    if not near and (card := find_name(typed)):
        hint = f" {card} is a card: attensor show {card}."
    said = f"{typed!r} is no command; there are {', '.join(known)}.{hint} See {prog} --help."
    return plain(said, most=_MOST_CHARACTERS)


def of_options(prog: str, box: str, options: Collection[str]) -> str:
    """What the parser says in a box with rules between its parts.

    Args:
        prog: the command.
        box: as printed.
        options: those of the command, with their hyphens.
    """
    text = without_colours(box)
    inside = [line.strip("│ ") for line in text.splitlines() if line.startswith("│")]
    if not inside:  # a terminal without lines: a heading, a rule, and the same below it
        inside = text.splitlines()[2:] if len(text.splitlines()) > 2 else text.splitlines()
    parts = re.split("─{4,}|-{4,}", " ".join(inside))
    said = " ".join(parts[0].split()).rstrip(".")
    unknown = re.fullmatch(r"Unrecognized (?:or misplaced )?options: (.*)", said)
    if unknown:
        said = _of_unknown(unknown[1].split(", "), options)
    for before, after in (*_SAYINGS.items(), *_READERS.items()):
        said = re.sub(before, after, said)
    return plain(f"{said}{'' if said.endswith('?') else '.'} See {prog} --help.", most=_MOST_CHARACTERS)


def nearest(typed: str, known: Iterable[str]) -> str | None:
    """What was meant: the same in another case, the word of these initials, or the nearest spelling; None for none."""
    names = {name.lower(): name for name in known}
    word = typed.lower().replace("_", "-")
    initials = [name for low, name in names.items() if _initials(low) == word.strip("-")]
    near = [names[word]] if word in names else initials
    near += [names[low] for low in difflib.get_close_matches(word, names, n=1)]
    near += [name for low, name in names.items() if len(word.strip("-")) > 2 and low.startswith(word)]
    return near[0] if near else None


def _initials(name: str) -> str:
    words = name.strip("-").split("-")
    return "".join(word[0] for word in words) if len(words) > 1 else ""


def _of_unknown(tokens: Sequence[str], options: Collection[str]) -> str:
    wrong = [token.partition("=")[0] for token in tokens if token.startswith("-")]
    if not wrong and "--mechanisms" in options and find_name(tokens[0]):
        return f"{' '.join(tokens)!r} belongs to no option; did you mean --mechanisms {','.join(tokens)}?"
    if not wrong:
        return f"{' '.join(tokens)!r} belongs to no option"
    near = nearest(wrong[0], options)
    return f"there is no option {wrong[0]}" + (f"; did you mean {near}?" if near else "")
