"""Other processes of Python: how they are started, so that a module of the folder one is in shadows none of theirs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress

__all__ = ["python_command", "without_current_folder"]


def python_command(module: str, *, with_current_folder: bool = False) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of `python -m module`, which can import what this process can.

    Except from the current folder: a `random.py` beside the user's data is no module of ours.

    Args:
        module: dotted name.
        with_current_folder: search it too, after everything else: the process is to import modules of a script there.
    """
    standard = without_current_folder(sys.path)
    path = [*standard, os.getcwd()] if with_current_folder and len(standard) < len(sys.path) else standard
    return [sys.executable, "-P", "-m", module], os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def without_current_folder(path: Iterable[str]) -> list[str]:
    """The entries of `sys.path` that are not the current folder; it stays where attensor itself lies in it."""
    ours = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    here = ""
    with suppress(OSError):  # the folder has been removed
        here = os.path.realpath(os.getcwd())
    return [each for each in path if each and (os.path.realpath(each) != here or here == ours)]
