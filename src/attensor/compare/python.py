"""The comparison from Python: `attensor.compare.run`."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from attensor.compare.comparison import compare
from attensor.compare.config import CompareConfig
from attensor.compare.ended import Ended
from attensor.compare.result import Result

__all__ = ["run"]

_NAMES = tuple(field.name for field in fields(CompareConfig))


def run(data: str | os.PathLike[str] = "stdlib", **options: Any) -> Result:
    """Train the same small model with each mechanism on your data, measure its cost, and say what to pick.

    Progress is shown where this runs: bars in a terminal and, with ipywidgets, in Jupyter; else a line a stage. The
    stop button or Ctrl-C lets each training write what it has.

    Args:
        data: as `--data`: a file, a folder, `"stdlib"` or `"digits"`.
        options: each option of `attensor compare`, with `_` for `-`: `mechanisms` (names with commas, or a list of
            them), `budget` (`"3m"`, or seconds), `steps`, `seeds`, `size`, `out`, `resume` and so on; see
            `attensor compare --help`.
    Returns:
        The results, those of failed mechanisms too, each with its reason.
    Raises:
        TypeError: no such option.
        DataError, ValueError, OSError: found before the training: data, options, disk.
        KeyboardInterrupt: stopped; the message says how to go on, and how to read what is there.
    """
    for name in options:
        if name not in _NAMES:
            near = difflib.get_close_matches(name, _NAMES, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" There are {', '.join(_NAMES)}."
            raise TypeError(f"run: no option {name!r}.{hint}")
    given = {"data": data, **options}
    if options.get("resume") is not None and data == "stdlib":
        del given["data"]
    call = ", ".join(f"{name}={value!r}" for name, value in given.items())
    config = CompareConfig(**{name: _as_option(name, value) for name, value in given.items()})
    try:
        folder = compare(config, command=f"attensor.compare.run({call})")
    except Ended as end:
        if end.is_interrupted:
            raise KeyboardInterrupt(
                f"stopped. Go on with attensor.compare.run(resume={str(end.folder)!r}); "
                f"what is there: attensor.compare.Result.load({str(end.folder)!r})"
            ) from None
        folder = end.folder
    return Result.load(folder)


def _as_option(name: str, value: Any) -> Any:
    """What the command line would have given."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if name == "budget" and isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.9f}".rstrip("0").rstrip(".") + "s"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(value) if name == "learning_rates" else ",".join(os.fspath(part) for part in value)
    return value


def _signature() -> inspect.Signature:
    """That of all options, for help and completion."""
    kinds = inspect.Parameter
    parameters = [
        kinds(field.name, kinds.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(CompareConfig)
        if field.name != "data"
    ]
    own = inspect.signature(run).parameters["data"]
    return inspect.Signature([own, *parameters], return_annotation="Result")


run.__signature__ = _signature()  # type: ignore[attr-defined]
