"""Errors that a user can meet: each says who complains, what was expected, what came, and what to do."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

__all__ = [
    "BackendError",
    "DataError",
    "Diverged",
    "LawError",
    "MissingExtraError",
    "ShapeError",
    "Stopped",
    "need",
    "plain",
    "require",
]


class ShapeError(ValueError):
    """Sizes of tensors disagree with each other or with an argument."""


class BackendError(RuntimeError):
    """No implementation of an operator can run here; the message gives the reason for each candidate."""


class DataError(ValueError):
    """The user's data cannot be used; the message names the file or folder."""


class LawError(RuntimeError):
    """A mixer breaks a law that every mixer must obey (shape, finiteness, causality)."""


class MissingExtraError(ImportError):
    """An optional library is needed and absent; the message gives the `pip install` line."""


class Diverged(RuntimeError):
    """The loss became infinite or not a number; the message gives the step and the learning rate."""


class Stopped(RuntimeError):
    """A training or a measurement was asked to stop; what it keeps holds the state after the last finished step."""


def plain(text: str, *, most: int = 500) -> str:
    """Text of somebody else as one line for a terminal, of `most` characters: nothing in it moves the cursor."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text[: 2 * most].split()))
    return shown if len(shown) <= most else f"{shown[:most]} ..."


# module that is imported -> the extra of ours that brings it
_EXTRAS = {
    "transformers": "hf",
    "jinja2": "report",
    "PIL": "vision",
    "kornia": "train",
    "sklearn": "vision",
    "scipy": "solve",
    "triton": "triton",
}


def require(module: str, *, purpose: str) -> ModuleType:
    """Import `module` (dotted names allowed) or say what brings it.

    Args:
        module: what to import, for instance `"jinja2.sandbox"`.
        purpose: what needs it, in a few words, for the message.
    Raises:
        MissingExtraError: the library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != root:
            raise  # the library is there and fails for a reason of its own
        raise _missing(root, purpose) from error


def need(*modules: str, purpose: str) -> None:
    """Find out whether libraries are installed, without importing them: before work that will need them at its end.

    Args:
        modules: top-level names.
        purpose: as of `require`.
    Raises:
        MissingExtraError: one is not installed.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise _missing(module, purpose)


def _missing(module: str, purpose: str) -> MissingExtraError:
    extra = _EXTRAS.get(module)
    line = f'"attensor[{extra}]"' if extra else module
    return MissingExtraError(f"{purpose} needs {module}, which is not installed: pip install {line}", name=module)
