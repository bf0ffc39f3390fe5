"""Kinds of arguments, read from annotations: one wording for everything that users call.

    linear_attention: q must be a torch.Tensor, got ndarray; use torch.from_numpy(q).
    softmax_attention: is_causal must be True or False, got 'no'.

Sizes, dtypes and devices, which depend on each other, are checked by the functions themselves.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import numbers
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from attensor.ops._precision import FLOATS

__all__ = ["ANYTHING", "TENSOR", "Kind", "kinds_of", "kinds_of_fields", "refuse"]


class Kind(NamedTuple):
    """What an argument may be.

    Attributes:
        sure: types that need no look at the value.
        accepts: whether a value of another type may pass.
        expected: for the message.
    """

    sure: frozenset[type]
    accepts: Callable[[Any], bool]
    expected: str


ANYTHING = Kind(frozenset(), lambda x: True, "anything")


def kinds_of(function: Callable[..., Any]) -> dict[str, Kind]:
    """Of the parameters that have one."""
    kinds, words = {}, inspect.unwrap(function).__globals__
    for parameter in inspect.signature(function).parameters.values():
        annotation = _annotation(parameter.annotation, words)
        if annotation is not inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            kinds[parameter.name] = _kind(annotation)
    return kinds


@functools.cache
def kinds_of_fields(made: type, base: type) -> dict[str, Kind]:
    """Of what a class and those between it and `base`, itself included, annotate; class variables are none."""
    kinds: dict[str, Kind] = {}
    for one in (kind for kind in reversed(made.__mro__) if issubclass(kind, base)):
        words = vars(sys.modules[one.__module__])
        found = {name: _annotation(said, words) for name, said in inspect.get_annotations(one).items()}
        kinds |= {
            name: _kind(said)
            for name, said in found.items()
            if said is not inspect.Parameter.empty and typing.get_origin(said) is not typing.ClassVar
        }
    return kinds


def _annotation(annotation: Any, words: dict[str, Any]) -> Any:
    """What a text means among these words; `inspect.Parameter.empty` where only type checkers know."""
    try:
        # a package may have a module named torch, which then stands for the library
        return eval(annotation, {**words, "torch": torch}) if isinstance(annotation, str) else annotation
    except (NameError, AttributeError, TypeError):
        return inspect.Parameter.empty


def _kind(annotation: Any) -> Kind:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    if origin in (typing.Union, types.UnionType):
        if torch.device in arguments:  # a name of one, not any string
            arguments = tuple(part for part in arguments if part is not str)
        return _either([_kind(part) for part in arguments])
    if origin is Literal:
        # True is no 1
        return Kind(
            frozenset(),
            lambda x: any(
                isinstance(x, type(y)) and isinstance(x, bool) == isinstance(y, bool) and x == y for y in arguments
            ),
            _choices(arguments),
        )
    if origin in (tuple, collections.abc.Sequence, list):
        rows = (tuple, list, range) if origin is collections.abc.Sequence else (tuple, list)
        return _row(_kind(arguments[0]), None if arguments[-1] is ... or origin is not tuple else len(arguments), rows)
    if origin is collections.abc.Mapping:
        return _mapping(*map(_kind, arguments))
    if isinstance(annotation, typing.TypeVar):
        return ANYTHING if annotation.__bound__ is None else _kind(annotation.__bound__)
    if annotation is collections.abc.Callable or origin is collections.abc.Callable:
        return Kind(frozenset(), callable, "a function")
    if isinstance(origin or annotation, type) and annotation not in (Any, object):
        wanted = origin or annotation
        if getattr(wanted, "_is_protocol", False):
            parts = [name for name in vars(wanted) if not name.startswith("_")]
            return Kind(frozenset(), lambda x: all(hasattr(x, part) for part in parts), f"a {wanted.__name__}")
        return Kind(frozenset({wanted}), lambda x: isinstance(x, wanted), f"a {wanted.__name__}")
    return ANYTHING


def _either(kinds: list[Kind]) -> Kind:
    sure = frozenset[type]().union(*(kind.sure for kind in kinds))
    expected = " or ".join(kind.expected for kind in kinds)
    return Kind(sure, lambda x: any(type(x) in kind.sure or kind.accepts(x) for kind in kinds), expected)


def _mapping(key: Kind, value: Kind) -> Kind:
    def accepts(x: Any) -> bool:
        parts = [(key, k) for k in x] + [(value, x[k]) for k in x] if isinstance(x, collections.abc.Mapping) else None
        return parts is not None and all(
            (type(y) in kind.sure or kind.accepts(y)) and not _is_odd(y) for kind, y in parts
        )

    of = "" if value.expected == ANYTHING.expected else f" from {key.expected} to {value.expected}"
    return Kind(frozenset(), accepts, f"a mapping{of}")


def _row(kind: Kind, length: int | None, rows: tuple[type, ...] = (tuple, list)) -> Kind:
    """A sequence of one kind, of one length if given; strings are none."""

    def accepts(x: Any) -> bool:
        if not isinstance(x, rows):
            return False
        row: Any = x
        return length in (None, len(row)) and all(
            (type(y) in kind.sure or kind.accepts(y)) and not _is_odd(y) for y in row
        )

    several = kind.expected.removeprefix("a finite ").removeprefix("an ").removeprefix("a ") + "s"
    return Kind(frozenset(), accepts, f"a tuple of {'' if length is None else f'{length} '}{several}")


def _is_odd(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.layout is not torch.strided or x.is_nested or x.is_quantized)


def _choices(values: tuple[Any, ...]) -> str:
    return "one of " + ", ".join(map(repr, values))


def _is_number(x: Any) -> bool:
    return not isinstance(x, bool) and isinstance(x, numbers.Real) and math.isfinite(x)


def _is_integer(x: Any) -> bool:
    if isinstance(x, bool):
        return False
    if isinstance(x, numbers.Integral):
        return -(2**63) <= int(x) < 2**63
    return isinstance(x, torch.SymInt)


def _is_device(x: Any) -> bool:
    """One that a tensor can be made on, here."""
    if not isinstance(x, (str, int, torch.device)) or isinstance(x, bool):
        return False
    try:
        device = torch.device(x)
        return device.type in ("cpu", "meta") or torch.empty(0, device=device) is not None
    except (RuntimeError, ValueError, AssertionError, NotImplementedError):
        return False


def _is_dtype(x: Any) -> bool:
    return isinstance(x, torch.dtype) and x in FLOATS


_NONE = frozenset[type]()
_SIMPLE: dict[Any, Kind] = {
    None: Kind(frozenset({type(None)}), lambda x: False, "None"),
    type(None): Kind(frozenset({type(None)}), lambda x: False, "None"),
    Tensor: Kind(frozenset({Tensor, torch.nn.Parameter}), lambda x: isinstance(x, Tensor), "a torch.Tensor"),
    bool: Kind(frozenset({bool}), lambda x: isinstance(x, torch.SymBool), "True or False"),
    int: Kind(_NONE, _is_integer, "an integer"),
    float: Kind(_NONE, _is_number, "a finite number"),
    str: Kind(frozenset({str}), lambda x: isinstance(x, str), "a string"),
    torch.device: Kind(_NONE, _is_device, "a device of this machine"),
    torch.dtype: Kind(_NONE, _is_dtype, "torch.float16, bfloat16, float32 or float64"),
    torch.Generator: Kind(frozenset({torch.Generator}), lambda x: False, "a torch.Generator"),
    Any: ANYTHING,
}
TENSOR = _SIMPLE[Tensor]


def refuse(name: str, argument: str, value: Any, kind: Kind) -> None:
    """Raise the error for a value that is not of its kind."""
    is_kind = isinstance(value, str) and "one of" in kind.expected
    is_kind |= isinstance(value, float) and "finite" in kind.expected
    raise (ValueError if is_kind else TypeError)(
        f"{name}: {argument} must be {kind.expected}, got {_shown(value)}{_repair(argument, value, kind)}."
    )


def _shown(value: Any) -> str:
    """The value where it is short, else its type."""
    if isinstance(value, (str, bool, int, float)):
        return f"{value!r:.60}"
    if isinstance(value, Tensor):
        odd = "nested" if value.is_nested else "quantised" if value.is_quantized else ""
        layout = odd or str(value.layout).removeprefix("torch.")
        return f"a {layout} torch.Tensor"
    if isinstance(value, (tuple, list)) and all(isinstance(x, (str, bool, int, float)) for x in value):
        return f"{value!r:.60}"
    return type(value).__name__


def _repair(argument: str, value: Any, kind: Kind) -> str:
    if isinstance(value, Tensor):
        return f"; use {argument}.item()" if "torch.Tensor" not in kind.expected else "; use a dense one: .to_dense()"
    if isinstance(value, int) and "an integer" in kind.expected and not isinstance(value, bool):
        return "; use one of 64 bits"
    if "torch.Tensor" not in kind.expected:
        return ""
    if type(value).__name__ == "ndarray":
        return f"; use torch.from_numpy({argument})"
    return f"; use torch.tensor({argument})" if isinstance(value, (list, tuple, int, float)) else ""
