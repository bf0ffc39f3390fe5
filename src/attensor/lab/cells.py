"""Results that are kept as they come, so that what was interrupted computes only what is missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attensor.files import read_json, write_json
from attensor.lab.display import Display
from attensor.lab.interruption import Interruption
from attensor.lab.pool import Cell, Outcome, Pool

__all__ = ["CellError", "kept", "run_cells"]


class CellError(RuntimeError):
    """A cell could not be computed; the message names the function, its arguments and the reason."""


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """The content of a JSON file; made and written first if it is not there."""
    value = read_json(path)
    if value is None:
        value = make()
        write_json(path, value)
    return value


def run_cells(
    folder: Path,
    function: Callable[..., Any],
    cells: Sequence[dict[str, Any]],
    *,
    resume: bool = True,
    at_once: int | None = None,
    kernels: str | None = None,
) -> list[Any]:
    """Compute `function(**cell)` for every cell in processes of one thread, and keep each result as soon as it comes.

    Args:
        folder: keeps a file a cell, under the function's name and a digest of the arguments.
        function: of a module, so that a new process can import it; returns something JSON can hold.
        cells: arguments, JSON values only.
        resume: take the results that are there already.
        at_once: processes; as many as there are cores if None. Measurements of time take 1, so that none disturbs
            another.
        kernels: as of `Pool`.
    Returns:
        The results in the order of `cells`.
    Raises:
        CellError: a cell failed, or its process died.
        KeyboardInterrupt: Ctrl-C or SIGTERM; finished cells are kept, those under way are not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = [Cell.of(function, cell) for cell in cells]
    paths = [folder / f"{cell.key}.json" for cell in asked]
    if not resume:
        for path in paths:
            path.unlink(missing_ok=True)
    missing = {path: cell for path, cell in zip(paths, asked, strict=True) if not path.exists()}
    if missing:
        _compute(missing, len(set(paths)), min(at_once or os.cpu_count() or 1, len(missing)), kernels)
    return [read_json(path)["result"] for path in paths]


def _compute(missing: dict[Path, Cell], total: int, at_once: int, kernels: str | None) -> None:
    """Compute and write the missing cells, `total` being all that were asked for."""
    path_of = {id(cell): path for path, cell in missing.items()}
    cells = list(missing.values())
    with Interruption().listening() as interruption, Display(cells[0].name) as display:
        work = display.expect(dict.fromkeys(missing), at_once, done=total - len(missing))

        def on_end(cell: Cell, outcome: Outcome) -> None:
            path = path_of[id(cell)]
            if outcome.reason is not None:
                raise CellError(_failure(cell, outcome, path.with_suffix(".failed.txt")))
            if not outcome.is_stopped:
                write_json(path, {"function": cell.name, "cell": cell.arguments, "result": outcome.result})
                work.finished(path, outcome.seconds)
                display.done += 1
                values = " ".join(f"{name}={value}" for name, value in cell.arguments.items())
                display.line(f"{cell.name}: {values}, took {outcome.seconds:.1f} s")

        Pool(interruption, kernels=kernels).run(cells, at_once=at_once, on_end=on_end, on_tick=display.tick)
    if interruption.requested:
        raise KeyboardInterrupt


def _failure(cell: Cell, outcome: Outcome, log: Path) -> str:
    if outcome.trace is None:
        return f"{cell}: {outcome.reason}."
    log.write_text(f"{cell}\n\n{outcome.trace}", encoding="utf-8")
    return f"{cell} failed: {outcome.reason} (see {log})"
