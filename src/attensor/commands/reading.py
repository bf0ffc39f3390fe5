"""How options are read and shown: lists with commas, what may be left out without a default, flags without a twin."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import textwrap
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

__all__ = ["MARKERS", "REGISTRY", "as_shown", "values_of", "without_colours", "wrapped"]

Class = TypeVar("Class", bound=type)

MARKERS = (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName)
REGISTRY = ConstructorRegistry()
_NUMBERS = {int: "a whole number", float: "a number"}


def as_shown(command: Class) -> Class:
    """The class of a command, whose options show no default of None, and whose `listed` text options take lists.

    Args:
        command: a dataclass; `listed` names those of its fields that hold names separated by commas as one text.
    """
    if "shown" in vars(command):
        return command
    hints, texts = get_type_hints(command, include_extras=True), _option_texts(command)
    for option in fields(command):
        kind = hints[option.name]
        is_listed = option.name in getattr(command, "listed", ())
        if option.name in texts:
            how = " Commas or spaces between." if is_listed or "tuple[" in str(kind) else ""
            kind = Annotated[kind, tyro.conf.arg(help=texts[option.name] + how)]
        if is_listed:
            kind = Annotated[kind, _joined(option.name)]
        if option.default is None or isinstance(option.default, bool) or option.default == ():
            kind = Annotated[kind, tyro.conf.arg(help_behavior_hint="")]
        if option.default is MISSING and get_origin(kind) is not None:
            kind = Annotated[kind, tyro.conf.arg(help_behavior_hint="(required)")]
        command.__annotations__[option.name] = kind
    command.shown = True  # type: ignore[attr-defined]
    return command


def _option_texts(command: type) -> dict[str, str]:
    """The strings below the fields, each as one line: the parser would keep the ends of their lines."""
    found: dict[str, str] = {}
    for base in reversed([one for one in command.__mro__ if is_dataclass(one)]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, text in pairwise(statements):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def values_of(texts: list[str], kind: type) -> list[Any]:
    """Values separated by commas, by spaces, or both; each of them read by `kind`. A path that is there stays whole.

    Raises:
        ValueError: one is no such value.
    """
    found = []
    words = ([word] if kind is str and os.path.exists(word) else word.split(",") for word in texts)
    for text in (part for parts in words for part in parts if part.strip()):
        try:
            found.append(kind(text.strip()))
        except ValueError:
            raise ValueError(f"{text.strip()!r} is not {_NUMBERS.get(kind, 'valid')}") from None
    return found


def without_colours(text: str) -> str:
    """Text without the codes that colour it."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def wrapped(page: str) -> str:
    """A page of help whose lines outside of boxes end where the terminal does; the boxes fit already."""
    width, lines = shutil.get_terminal_size().columns, []
    for line in page.split("\n"):
        fits = len(without_colours(line)) <= width or without_colours(line)[:1] in "│╭╰"
        lines += [line] if fits else textwrap.wrap(line, width)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


@REGISTRY.primitive_rule
def _lists(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A tuple of any length: of numbers, names, words out of a choice, or pairs of whole numbers."""
    if info.type_origin is not tuple or get_args(info.type)[1:] != (...,):
        return None
    (member, _) = get_args(info.type)
    if get_origin(member) is tuple:
        return _pairs()
    choices = get_args(member) if get_origin(member) is Literal else ()
    kind = str if choices else member

    def read(texts: list[str]) -> tuple[Any, ...]:
        found = values_of(texts, kind)
        if choices and (unknown := [one for one in found if one not in choices]):
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(choices)}")
        return tuple(found)

    metavar = {int: "N,N,...", float: "X,X,..."}.get(member, "NAME,NAME,...")
    return _listed(metavar, read, lambda values: [",".join(str(value) for value in values)])


def _pairs() -> PrimitiveConstructorSpec[Any]:
    def read(texts: list[str]) -> tuple[Any, ...]:
        flat = values_of([re.sub(r"(?<=\d)x(?=\d)", ",", text) for text in texts], int)
        if len(flat) % 2:
            raise ValueError(f"{len(flat)} numbers are no pairs")
        return tuple(zip(flat[::2], flat[1::2]))

    return _listed("NxN,NxN,...", read, lambda pairs: [",".join(f"{a}x{b}" for a, b in pairs)])


def _joined(name: str) -> PrimitiveConstructorSpec[Any]:
    """Names in one text; a comma at the end of a word, or none, changes nothing."""

    def read(texts: list[str]) -> str:
        return ",".join(part for text in texts for part in (word.strip() for word in text.split(",")) if part)

    return _listed("NAME,NAME,...", read, lambda text: [text])


def _listed(metavar: str, read: Any, write: Any) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, tuple | str),
        str_from_instance=write,
    )
