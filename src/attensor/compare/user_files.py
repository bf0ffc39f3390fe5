"""Modules from the user's own files: found, imported so that they change nothing else, tried before a run starts."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attensor.errors import DataError, plain
from attensor.files import user_path
from attensor.lab import Cell, Interruption, Outcome, Pool

if TYPE_CHECKING:
    from torch import nn

__all__ = ["file_and_class", "try_class", "undisturbed", "user_class"]

_IMPORT_SECONDS = 60.0


def file_and_class(text: str) -> tuple[Path, str]:
    """The absolute path and the name in `my_file.py:MyMixer`.

    Raises:
        ValueError: no such file, or no name.
    """
    file, _, name = text.rpartition(":")
    path = user_path(file if file.endswith(".py") else text, "--mechanisms")
    if not path.is_file():
        raise ValueError(f"--mechanisms {text}: there is no file {plain(str(path))}.")
    if not file.endswith(".py") or not name.isidentifier():
        raise ValueError(f"--mechanisms {text}: say which class of the file: {path}:ClassName.")
    return path, name


def try_class(path: Path, name: str) -> None:
    """Import the file in a process of its own, which it may end, stop or change as it likes.

    Raises:
        ValueError: it cannot be imported, does not come to its end, or has no such class.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    Cost: the start of a process, 2 s.
    """
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        cell = Cell.of(_try, {"path": str(path), "name": name}, log=Path(folder, "log"))
        with Interruption().listening() as interruption:
            pool = Pool(interruption, limit_seconds=_IMPORT_SECONDS)
            pool.run([cell], at_once=1, on_end=lambda cell, outcome: outcomes.append(outcome))
    if interruption.requested:
        raise KeyboardInterrupt
    (outcome,) = outcomes
    if outcome.reason is not None:
        # a process that ended without an exception says nothing of the file
        where = "" if outcome.trace else f"{path.name}: cannot be imported: "
        raise ValueError(f"--mechanisms: {where}{outcome.reason.rstrip('.')}.")


def _try(path: str, name: str) -> None:
    user_class(Path(path), name)


def user_class(path: Path, name: str) -> type[nn.Module]:
    """The class of that name in the file.

    Raises:
        DataError: the file cannot be imported, or has no such class.
    """
    from torch import nn

    module = _imported(path)
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found
    classes = [n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, nn.Module)]
    near = difflib.get_close_matches(name, classes, n=1) or classes
    hint = f" Did you mean {near[0]}?" if near else " It must be a subclass of torch.nn.Module."
    raise DataError(f"{path.name}:{name}: the file has no nn.Module class of that name.{hint}")


def _imported(path: Path) -> Any:
    # named by its path: two files called mixer.py are two modules, and pickling finds the class again
    name = f"attensor_user_{hashlib.sha256(str(path).encode(errors='replace')).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path}: is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.append(str(path.parent))  # so that the file can import its neighbours
    try:
        with undisturbed():
            spec.loader.exec_module(module)
    except SystemExit as error:
        del sys.modules[name]
        raise DataError(
            f"{path.name}: cannot be imported: it ends the process (sys.exit, or argparse). "
            "Put that below `if __name__ == '__main__':`."
        ) from error
    except BaseException as error:  # GeneratorExit and the like too
        del sys.modules[name]
        what = f"{type(error).__name__}: {plain(str(error))}".removesuffix(": ")
        raise DataError(f"{path.name}: cannot be imported: {what}") from error
    return module


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put back what the code inside changes for the whole process: the numbers would follow it in silence."""
    import torch

    state: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
        (os.getcwd, os.chdir),
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_default_device, lambda _: torch.set_default_device(None)),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
        (lambda: signal.getsignal(signal.SIGTERM), lambda handler: signal.signal(signal.SIGTERM, handler)),
    ]
    before = [(get, put, get()) for get, put in state]
    try:
        yield
    finally:
        for get, put, value in before:
            if get() != value:
                put(value)
