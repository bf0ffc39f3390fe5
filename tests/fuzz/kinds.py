"""Kinds of arguments as the documentation states them, and what of them is wrong in a value."""

from __future__ import annotations

import collections.abc
import math
import numbers
import os
from typing import Any

import numpy
import torch
from torch import Tensor

from tests.fuzz.calls import Illegal, need

__all__ = ["NUMPY_INTEGER", "check"]

NUMPY_INTEGER = "an integer of numpy"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check(kinds: Any, arguments: dict[str, Any]) -> str | None:
    """Refuse arguments of another kind, absent and unknown ones; a text where that is left open.

    Raises:
        Illegal: with the reason.
    """
    unsaid = None
    for name, value in arguments.items():
        need(name in kinds, f"{name}: there is no such argument")
        base, _, of = kinds[name].partition(":")
        if value is None:
            need(base.endswith("?"), f"{name}: None")
        else:
            unsaid = _KINDS[base.strip("*?")](name, value, of) or unsaid
    for name, kind in kinds.items():
        need(name in arguments or not kind.startswith("*"), f"{name}: missing")
    return unsaid


def _tensor(name: str, x: Any, of: str) -> None:
    need(isinstance(x, Tensor), f"{name}: no tensor")
    need(x.layout is torch.strided and not x.is_nested and not (of and x.is_quantized), f"{name}: not dense")
    if of == "float":
        need(x.dtype in FLOATS, f"{name}: {x.dtype}")
    elif of == "numbers":
        need(x.dtype in (*FLOATS, torch.int32, torch.int64), f"{name}: {x.dtype}")
    elif of == "integers":
        need(x.dtype in (torch.int32, torch.int64), f"{name}: {x.dtype}")
    elif of == "whole":
        need(not x.is_floating_point() and not x.is_complex() and x.dtype != torch.bool, f"{name}: {x.dtype}")
    elif of == "mask":
        need(x.dtype in (*FLOATS, torch.bool), f"{name}: {x.dtype}")
    elif of == "bool":
        need(x.dtype == torch.bool, f"{name}: {x.dtype}")


def _tensors(name: str, x: Any, of: str) -> None:
    need(isinstance(x, (list, tuple)), f"{name}: no sequence")
    for part in x:
        _tensor(name, part, of)


def _packing(name: str, x: Any, of: str) -> str | None:
    """Bounds, or two of them: of queries and of keys."""
    if not isinstance(x, (tuple, list)):
        return _tensor(name, x, "integers")
    need(len(x) == 2, f"{name}: not two")
    for bounds in x:
        _tensor(name, bounds, "integers")
    return f"{name}: a list" if isinstance(x, list) else None


def _bool(name: str, x: Any, of: str) -> None:
    need(isinstance(x, bool), f"{name}: no bool")


def _int(name: str, x: Any, of: str) -> str | None:
    need(not isinstance(x, bool) and isinstance(x, numbers.Integral), f"{name}: no integer")
    need(not of or x >= int(of), f"{name}: below {of}")
    if not -(2**63) <= x < 2**63:
        return f"{name}: beyond 64 bits"
    return None if isinstance(x, int) else f"{name}: {NUMPY_INTEGER}"


# ranges of a number -> what holds inside
_RANGES = {
    "above 0": lambda x: x > 0,
    "from 0": lambda x: x >= 0,
    "share": lambda x: 0 <= x < 1,
    "0 to 1": lambda x: 0 <= x <= 1,
}


def _float(name: str, x: Any, of: str) -> str | None:
    need(isinstance(x, (int, float)) and not isinstance(x, bool), f"{name}: no number")
    need(math.isfinite(x), f"{name}: not finite")
    need(not of or _RANGES[of](x), f"{name}: not {of}")
    return f"{name}: beyond a float" if abs(x) > 1e300 else None


def _bound(name: str, x: Any, of: str) -> str | None:
    """A number, or minus infinity for none."""
    return f"{name}: no bound" if x == -math.inf else _float(name, x, of)


def _choice(name: str, x: Any, of: str) -> None:
    choices = [int(text) if text.isdigit() else text for text in of.split("|")]
    need(any(type(x) is type(choice) and x == choice for choice in choices), f"{name}: unknown")


def _text(name: str, x: Any, of: str) -> None:
    need(isinstance(x, str), f"{name}: no string")


def _dtype(name: str, x: Any, of: str) -> None:
    need(isinstance(x, torch.dtype) and x in FLOATS, f"{name}: no floating dtype")


def _device(name: str, x: Any, of: str) -> None:
    need(isinstance(x, (str, torch.device)), f"{name}: no device")
    try:
        device = torch.device(x)
    except RuntimeError:
        raise Illegal(f"{name}: no device") from None
    need(device.type in ("cpu", "meta"), f"{name}: not on this machine")


def _per_axis(name: str, x: Any, of: str) -> str | None:
    """One value for all axes or one for each."""
    item = _bool if of == "bool" else _int
    if not isinstance(x, (tuple, list)):
        return item(name, x, "")
    several = [item(name, y, "") for y in x]
    return f"{name}: a list" if isinstance(x, list) else next(filter(None, several), None)


def _feature_map(name: str, x: Any, of: str) -> str | None:
    need(callable(x) or x in of.split("|") if isinstance(x, str) else callable(x), f"{name}: unknown")
    return f"{name}: a class" if isinstance(x, type) else None


def _function(name: str, x: Any, of: str) -> str | None:
    need(callable(x), f"{name}: no function")
    return f"{name}: a class" if isinstance(x, type) else None


def _instance(name: str, x: Any, of: str) -> None:
    """One of these classes; of settings the attributes by name, too."""
    is_by_name = of == "Slicing" and isinstance(x, dict) and all(isinstance(key, str) for key in x)
    need(is_by_name or type(x).__name__ in of.split("|"), f"{name}: no {of}")


def _numbers(name: str, x: Any, of: str) -> str | None:
    """A sequence of finite numbers."""
    if isinstance(x, (numpy.ndarray, Tensor)):
        return f"{name}: an array"
    need(isinstance(x, (list, tuple)), f"{name}: no sequence")
    for y in x:
        need(isinstance(y, (int, float)), f"{name}: no number")
    if any(isinstance(y, bool) for y in x):
        return f"{name}: True for 1"
    return None if all(math.isfinite(y) for y in x) else f"{name}: not finite"


def _sizes(name: str, x: Any, of: str) -> str | None:
    """A row of integers with a smallest one, and how many if that is said: `1`, `1 2`."""
    need(isinstance(x, (list, tuple)), f"{name}: no tuple")
    least, _, count = of.partition(" ")
    need(len(x) == int(count) if count else len(x), f"{name}: how many")
    several = [_int(name, y, least) for y in x]
    return f"{name}: a list" if isinstance(x, list) else next(filter(None, several), None)


def _mapping(name: str, x: Any, of: str) -> None:
    """Names to tensors, of floating dtypes if that is said."""
    need(isinstance(x, collections.abc.Mapping), f"{name}: no mapping")
    for key, value in x.items():
        need(isinstance(key, str), f"{name}: no name")
        _tensor(name, value, of)


def _path(name: str, x: Any, of: str) -> None:
    need(isinstance(x, (str, os.PathLike)), f"{name}: no path")


def _anything(name: str, x: Any, of: str) -> None:
    pass


_KINDS = {
    "tensor": _tensor,
    "tensors": _tensors,
    "packing": _packing,
    "bool": _bool,
    "bound": _bound,
    "int": _int,
    "count": _int,
    "float": _float,
    "choice": _choice,
    "text": _text,
    "dtype": _dtype,
    "device": _device,
    "per_axis": _per_axis,
    "feature_map": _feature_map,
    "function": _function,
    "instance": _instance,
    "numbers": _numbers,
    "sizes": _sizes,
    "mapping": _mapping,
    "path": _path,
    "cache": _anything,
    "anything": _anything,
}
