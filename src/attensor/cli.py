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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tyro

from attensor import __version__
from attensor.catalogue import cards, load
from attensor.commands import GENERAL, GROUPS
from attensor.commands.complaints import of_command, of_options
from attensor.commands.reading import MARKERS, REGISTRY, as_shown, without_colours, wrapped
from attensor.errors import BackendError, DataError, LawError, MissingExtraError, ShapeError, plain

__all__ = ["commands", "main"]

USER_ERRORS = (ShapeError, DataError, BackendError, LawError, MissingExtraError, OSError)
_MOST_CHARACTERS = 4000
# modules that write to the standard output
_PRINTERS = ("rich.", "attensor.commands.")
DESCRIPTION = """Attention mechanisms in one place: pick one by measuring it on your data, then use it.

  attensor list                              what there is
  attensor show gla                          one in full, with code to paste
  attensor compare --data my_texts/          which is best on your data
  attensor compare --mechanisms gla,softmax  only these; lists have commas
  attensor --version                         which version this is

attensor COMMAND --help lists the options of a command."""


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
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in (["--version"], ["-V"]):
        sys.stdout.write(f"attensor {__version__}\n")
        return 0
    command = _parse(arguments)
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
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    typed = next((words for n in (2, 1) if (words := " ".join(arguments[:n])) in known), None)
    group = arguments[0] if arguments and any(words.startswith(f"{arguments[0]} ") for words in known) else None
    head = (typed or group or "").split()
    prog, rest = " ".join(["attensor", *head]), list(arguments[len(head) :])
    if typed is not None:
        return _options(as_shown(load(known[typed])), prog, rest)
    members = {w.partition(" ")[2]: path for w, path in known.items() if w.startswith(f"{group} ")} or known
    if rest and not rest[0].startswith("-"):
        sys.stderr.write(
            f"{prog}: {of_command(prog, rest[0], _first_words(members), () if group else ('--version', '--help'))}\n"
        )
        return None
    # the completion of a shell needs all there is
    in_full = rest[:1] in (["--tyro-print-completion"], ["--tyro-write-completion"])
    menu = _menu(members, in_full=in_full)
    text = GROUPS.get(group) if group else DESCRIPTION
    return _said(
        lambda: menu.cli(prog=prog, description=text, args=rest or ["--help"], config=MARKERS, registry=REGISTRY),
        lambda box: of_options(prog, box, ["--help", "--version"]),
        prog,
        is_page=not in_full,
    )


def _options(command: Any, prog: str, rest: list[str]) -> Any:
    """The command with what `rest` says."""

    def read(arguments: list[str]) -> Any:
        return tyro.cli(command, prog=prog, args=arguments, config=MARKERS, registry=REGISTRY)

    def names() -> list[str]:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            read(["--help"])
        return re.findall(r"(?m)^\W*(--[a-z][\w-]*)", without_colours(shown.getvalue()))

    return _said(lambda: read(rest), lambda box: of_options(prog, box, [*names(), "--help"]), prog)


class _Shown(io.StringIO):
    """What the parser prints, in the colours and with the boxes of where it will go."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        self._target = target

    def isatty(self) -> bool:
        return bool(self._target.isatty())

    @property
    def encoding(self) -> str | None:  # type: ignore[override]
        return getattr(self._target, "encoding", None)


def _said(read: Callable[[], Any], complaint: Callable[[str], str], prog: str, *, is_page: bool = True) -> Any:
    """What `read` returns; None after a line of what it complained of. What it prints is a page, or left as it is."""
    said, shown = io.StringIO(), _Shown(sys.stdout)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
            return read()
    except SystemExit as end:
        if not end.code:
            sys.stdout.write(wrapped(shown.getvalue()) if is_page else shown.getvalue())
            raise
    sys.stderr.write(f"{prog}: {complaint(said.getvalue())}\n")
    return None


def _first_words(known: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words.partition(" ")[0] for words in known))


def _menu(known: Mapping[str, str], *, in_full: bool = False) -> tyro.extras.SubcommandApp:
    """Commands of one word, and groups; what is in the groups is imported only for a menu in full."""
    menu = tyro.extras.SubcommandApp()
    groups: dict[str, dict[str, str]] = {}
    for words, path in known.items():
        first, _, second = words.partition(" ")
        if second:
            groups.setdefault(first, {})[second] = path
        else:
            menu.command(name=first)(as_shown(load(path)))
    for first, members in groups.items():
        text = f"{GROUPS.get(first, '')} ({', '.join(members)})".strip()
        if in_full:
            menu.command(_menu(members), name=first, help=text)
        else:
            menu.command(name=first, help=text)(lambda: None)
    return menu


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
