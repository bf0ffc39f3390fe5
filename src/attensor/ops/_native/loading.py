"""A file as the library of the kernels: whole, and with every function and structure that Python knows of."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["ARGUMENTS", "argument_of", "load"]

# name of a kernel -> the structure that it takes
ARGUMENTS: dict[str, type[ctypes.Structure]] = {}

_S = TypeVar("_S", bound=ctypes.Structure)


def argument_of(name: str) -> Callable[[type[_S]], type[_S]]:
    """A decorator: the class is what the kernel `name` takes a pointer to, and every library must have that kernel."""

    def keep(structure: type[_S]) -> type[_S]:
        ARGUMENTS[name] = structure
        return structure

    return keep


def load(path: Path) -> ctypes.CDLL:
    """The library in `path`, ready to be called.

    Raises:
        OSError: it is cut short, no library, has not all kernels, or lays their arguments out differently from Python.
    """
    _require_whole(path)
    library = ctypes.CDLL(str(path))
    for name, structure in ARGUMENTS.items():
        for real in ("float", "double"):
            _require_kernel(library, name, real, structure)
    return library


def _require_whole(path: Path) -> None:
    """A library cut short may load, and kills the process that touches what is missing; linkers put a table last."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) == 64 and header.startswith(b"\x7fELF\x02\x01"):  # 64 bits, little-endian
        (start,), (size, count) = struct.unpack_from("<Q", header, 40), struct.unpack_from("<HH", header, 58)
        if path.stat().st_size < start + size * count:
            raise OSError(f"{path} is cut short")


def _require_kernel(library: ctypes.CDLL, name: str, real: str, structure: type[ctypes.Structure]) -> None:
    try:
        _, layout = (getattr(library, f"attensor_{name}{part}_{real}") for part in ("", "_layout"))
    except AttributeError:
        raise OSError(f"{library._name} has no kernel {name} for {real}") from None
    fields = [field for field, *_ in structure._fields_]
    layout.restype = ctypes.POINTER(ctypes.c_int64)
    theirs = layout()[: 1 + len(fields)]
    ours: list[Any] = [ctypes.sizeof(structure), *(getattr(structure, field).offset for field in fields)]
    if theirs != ours:
        where = next(part for part, a, b in zip(("its size", *fields), theirs, ours, strict=True) if a != b)
        raise OSError(f"{library._name}: C++ and Python disagree on what {name} takes from {where} on")
