"""What a data set leaves out, counted and named, so that nothing is missing in silence."""

from __future__ import annotations

from attensor.errors import plain

__all__ = ["LeftOut"]

_EXAMPLES = 3
_MOST_CHARACTERS = 60  # of a name


class LeftOut:
    """A list of what was left out, by reason."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], list[str]] = {}

    def add(self, name: str, reason: str, remedy: str = "") -> None:
        """Note that the file of this name is left out, why, and what its owner can do."""
        self._names.setdefault((reason, remedy), []).append(name)

    def sentences(self) -> tuple[str, ...]:
        """One for each reason: how many, why, the names of the first, what to do."""
        return tuple(_sentence(names, *why) for why, names in self._names.items())


def _sentence(names: list[str], reason: str, remedy: str) -> str:
    shown = [plain(name, most=_MOST_CHARACTERS) for name in names[:_EXAMPLES]]
    more = ["..."] if len(names) > _EXAMPLES else []
    count = "1 file" if len(names) == 1 else f"{len(names)} files"
    return f"{count} left out: {reason} ({', '.join(shown + more)}).{f' {remedy}.' if remedy else ''}"
