"""The command line: the general verbs of `attensor.commands`, and what the cards of the catalogue bring.

Only what is typed is imported: one command, or for `attensor bench --help` those of that group.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from attensor.catalogue import cards, load
from attensor.commands import GENERAL, GROUPS
from attensor.errors import BackendError, DataError, LawError, MissingExtraError, ShapeError, plain

__all__ = ["commands", "main"]

USER_ERRORS = (ShapeError, DataError, BackendError, LawError, MissingExtraError, OSError)
_MOST_CHARACTERS = 4000
# modules that write to the standard output
_PRINTERS = ("rich.", "attensor.commands.")
DESCRIPTION = "Every attention in one place: pick one by measuring it on your data, then use it."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Errors that attensor raises on purpose become one line on stderr and exit code 2, as do arguments that cannot be
    read; the environment variable `ATTENSOR_DEBUG=1` shows where they come from. Any other exception is a bug and keeps
    its traceback. Ctrl-C gives 130.

    Args:
        arguments: without the program's name; those of the process when None.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without ± gets a question mark, not a traceback
        sys.stdout.reconfigure(errors="replace")
    command = _parse(sys.argv[1:] if arguments is None else arguments)
    if command is None:
        return 2
    try:
        return command.run() or 0
    except KeyboardInterrupt:
        return 130
    except (*USER_ERRORS, ValueError) as error:
        if os.environ.get("ATTENSOR_DEBUG") or not _is_on_purpose(error):
            raise
        sys.stderr.write(f"attensor: {_what(error)}\n")
        return 2


def commands() -> dict[str, str]:
    """What can be typed, one or two words -> `"module:Class"`; of two cards with the same words the first counts."""
    found = dict(GENERAL)
    for card in cards().values():
        for words, path in card.commands.items():
            found.setdefault(words, path)
    return found


def _parse(arguments: Sequence[str]) -> Any:
    """The command with its options, or None after a line about what cannot be read."""
    known = commands()
    typed = next((words for n in (2, 1) if (words := " ".join(arguments[:n])) in known), None)
    group = arguments[0] if arguments and any(words.startswith(f"{arguments[0]} ") for words in known) else None
    head = (typed or group or "").split()
    prog, rest = " ".join(["attensor", *head]), list(arguments[len(head) :])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if typed is not None:
                return tyro.cli(load(known[typed]), prog=prog, args=rest)
            members = {w.partition(" ")[2]: path for w, path in known.items() if w.startswith(f"{group} ")}
            # the completion of a shell needs all there is
            menu = _menu(
                members or known, in_full=rest[:1] in (["--tyro-print-completion"], ["--tyro-write-completion"])
            )
            text = GROUPS.get(group) if group else DESCRIPTION
            return menu.cli(prog=prog, description=text, args=rest or ["--help"])
    except SystemExit as end:
        if not end.code:
            raise
        sys.stderr.write(f"{prog}: {_one_line(said.getvalue())}\n")
        return None


def _menu(known: Mapping[str, str], *, in_full: bool = False) -> tyro.extras.SubcommandApp:
    """Commands of one word, and groups; what is in the groups is imported only for a menu in full."""
    menu = tyro.extras.SubcommandApp()
    groups: dict[str, dict[str, str]] = {}
    for words, path in known.items():
        first, _, second = words.partition(" ")
        if second:
            groups.setdefault(first, {})[second] = path
        else:
            menu.command(name=first)(load(path))
    for first, members in groups.items():
        text = f"{GROUPS.get(first, '')} ({', '.join(members)})".strip()
        if in_full:
            menu.command(_menu(members), name=first, help=text)
        else:
            menu.command(name=first, help=text)(lambda: None)
    return menu


def _one_line(box: str) -> str:
    """What the parser says in a box with rules between its parts, as sentences."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    inside = [line.strip("│ ") for line in text.splitlines() if line.startswith("│")]
    parts = re.split("─+", " ".join(inside)) if inside else [text]
    return plain(". ".join(" ".join(part.split()).rstrip(".") for part in parts) + ".", most=_MOST_CHARACTERS)


def _what(error: Exception) -> str:
    """The message, on a line of its own."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is None and _raised_in(error).startswith(_PRINTERS):
        text = f"the standard output cannot be written: {error.strerror}. Send it to a terminal or another file."
    return plain(text, most=_MOST_CHARACTERS)


def _raised_in(error: BaseException) -> str:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", ""))


def _is_on_purpose(error: BaseException) -> bool:
    """Whether the message is meant for the user: one of our types, or a ValueError raised by our own code."""
    if isinstance(error, USER_ERRORS):
        return True
    return _raised_in(error).partition(".")[0] == "attensor"
