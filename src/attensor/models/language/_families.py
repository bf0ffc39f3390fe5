"""All language families at once."""

from __future__ import annotations

import importlib
import pkgutil

__all__ = ["import_families"]


def import_families() -> None:
    """Import every family, so that transformers' Auto classes know it.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    package = importlib.import_module("attensor.models.language")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package.__name__}.{module.name}")
