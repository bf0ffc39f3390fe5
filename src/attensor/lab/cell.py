"""A piece of work that another process can do: a function of a module and its arguments, which are JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Cell"]


@dataclass(frozen=True)
class Cell:
    """A call.

    Attributes:
        function: `"module:name"`.
        arguments: by name, JSON values.
        log: file for what it prints and for its errors, in a process of its own; None: with those of this process.
    """

    function: str
    arguments: dict[str, Any]
    log: Path | None = None

    @classmethod
    def of(cls, function: Callable[..., Any], arguments: dict[str, Any], *, log: Path | None = None) -> Cell:
        """The call `function(**arguments)`.

        Raises:
            ValueError: another process cannot import the function.
        """
        module, name = function.__module__, function.__qualname__
        if module == "__main__" or "." in name:
            raise ValueError(f"Cell.of: {module}.{name} must be a function of a module that can be imported.")
        return cls(f"{module}:{name}", arguments, log)

    @property
    def name(self) -> str:
        """Of the function."""
        return self.function.rpartition(":")[2]

    @property
    def key(self) -> str:
        """A name for its file: the function's and a digest of the arguments."""
        text = json.dumps(self.arguments, sort_keys=True, allow_nan=False)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"
