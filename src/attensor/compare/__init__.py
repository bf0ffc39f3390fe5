"""The comparison: the same small model trained with each mechanism, measured, and put into words.

`run` is the comparison from Python, `Result` what it found, `merge` puts the results of several machines together.
Inside, `config` says what can be asked, `plan` freezes the answer, `comparison` starts a process a mechanism, `results`
gathers what they wrote, `conclusions` draws the conclusions. Importing this package loads none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attensor.compare.merging import merge as merge
    from attensor.compare.python import run as run
    from attensor.compare.result import Result as Result

__all__ = ["Result", "merge", "run"]

_HOMES = {"Result": "result", "merge": "merging", "run": "python"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"attensor.compare.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'attensor.compare' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
