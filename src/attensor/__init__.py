"""attensor: every attention in one place, behind one calling convention, checked and measured.

`import attensor` itself loads nothing; the parts load when they are first used.
"""

from __future__ import annotations

import importlib

# typing is not imported: `python -m attensor` gets here before the current folder has left the path
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from attensor import catalogue as catalogue
    from attensor import models as models
    from attensor import nn as nn
    from attensor import ops as ops
    from attensor.ops._operator import backend as backend

__version__ = "0.1.0"
__all__ = ["__version__", "backend", "catalogue", "models", "nn", "ops"]


def __getattr__(name: str) -> Any:
    if name == "backend":
        return importlib.import_module("attensor.ops._operator").backend
    if name in __all__:
        return importlib.import_module(f"attensor.{name}")
    raise AttributeError(f"module 'attensor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
