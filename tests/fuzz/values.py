"""Random legal configurations against formulas: `python -m tests.fuzz.values --configurations 3000 --seed 0`.

Each back-end of each operator is compared with the docstring's formula in numpy and float64 (`definitions`), and in
float64 its gradients with differences of the formula. The error is that of the whole result, relative to its largest
number. Limits: float64 1e-6, float32 1e-5, half precision 2e-2 and 5e-2; no NaN and no infinity that the formula does
not have. Exit code 1 if there is anything beyond.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import attensor
from attensor import nn, ops
from tests.fuzz.calls import evaluate, tensors_in, values_of
from tests.fuzz.configurations import FORMS, Configuration, draw_configuration
from tests.fuzz.definitions import DEFINITIONS
from tests.fuzz.gradients import gradient_error
from tests.fuzz.workers import in_processes

__all__ = ["LIMITS", "Comparison", "compare", "main"]

LIMITS = {"float64": 1e-6, "float32": 1e-5, "float16": 2e-2, "bfloat16": 5e-2}


class Comparison(NamedTuple):
    """Of one form of one configuration with the definition.

    Attributes:
        operator, form, dtype: cell of the table.
        error: of the largest number; infinite where an error was raised or NaN and infinities differ.
        line: the call, to paste.
        what: what is wrong beside the error.
    """

    operator: str
    form: str
    dtype: str
    error: float
    line: str
    what: str = ""


def compare(seed: int, index: int) -> list[Comparison]:
    """All forms of configuration number `index`."""
    drawn = draw_configuration(seed, index)
    arrays = {name: _array(value) for name, value in values_of(drawn.arguments).items()}
    with numpy.errstate(all="ignore"):
        expected = DEFINITIONS[drawn.operator](arrays)
    found = [_of_form(drawn, form, expected) for form in drawn.forms]
    return found + [_gradient(drawn, form, arrays) for form in drawn.forms if _is_smooth(drawn)]


def _is_smooth(drawn: Configuration) -> bool:
    """Differences of extreme scales say nothing, a pool is changed in place, and lists of parts hold no leaves."""
    extreme = "2.0**" in drawn.arguments.get("scale", "") or "e" in drawn.arguments.get("scale", "")
    return drawn.dtype == "float64" and not extreme and not {"state_slots", "outs"}.intersection(drawn.arguments)


def _gradient(drawn: Configuration, form: str, arrays: dict[str, Any]) -> Comparison:
    function, values, line, context = _prepared(drawn, form)
    error, what = float("inf"), "gradient"
    try:
        with context:
            error = gradient_error(drawn.operator, function, values, arrays)
    except Exception as raised:
        what = f"gradient: {type(raised).__name__}: {raised}"[:300]
    return Comparison(drawn.operator, f"{form}, gradient", drawn.dtype, error, line, what)


def _array(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double().numpy() if value.is_floating_point() else value.numpy()
    if type(value) is tuple:
        return tuple(_array(part) for part in value)
    return [_array(part) for part in value] if isinstance(value, list) else value


def _prepared(drawn: Configuration, form: str) -> tuple[Callable[..., Any], dict[str, Any], str, Any]:
    """What is called, its arguments, the line to paste and the context."""
    more, backend = FORMS.get(form, ({}, None))
    called = ", ".join(f"{name}={text}" for name, text in {**drawn.arguments, **more}.items())
    place = "nn" if drawn.operator == "rotary_embedding" else "ops"
    line = f"{place}.{drawn.operator}({called})" + (f"  # backend {backend}" if backend else "")
    values = {**values_of(drawn.arguments), **{name: evaluate(text) for name, text in more.items()}}
    context = attensor.backend(backend) if backend else nullcontext()
    return getattr(nn if place == "nn" else ops, drawn.operator), values, line, context


def _of_form(drawn: Configuration, form: str, expected: list[Any]) -> Comparison:
    function, values, line, context = _prepared(drawn, form)
    try:
        with torch.no_grad(), context:
            found = tensors_in(function(**values))
    except Exception as error:
        return Comparison(
            drawn.operator, form, drawn.dtype, float("inf"), line, f"{type(error).__name__}: {error}"[:300]
        )
    worst, what = 0.0, ""
    for x, y in zip(found, expected):
        error, why = _error(x, torch.from_numpy(numpy.asarray(y)))
        worst, what = max(worst, error), what or why
    return Comparison(drawn.operator, form, drawn.dtype, worst, line, what)


def _error(found: Tensor, expected: Tensor) -> tuple[float, str]:
    """Relative to the largest number; infinite, with the reason, where sizes, NaN or infinities differ."""
    if found.shape != expected.shape:
        return float("inf"), f"sizes {list(found.shape)} for {list(expected.shape)}"
    x, y = found.double(), expected.to(found.dtype).double()
    if not torch.equal(x.isfinite(), y.isfinite()):
        return float("inf"), f"{int((~x.isfinite()).sum())} not finite, the definition has {int((~y.isfinite()).sum())}"
    if not torch.equal(x[~y.isfinite()], y[~y.isfinite()]) and not y.isnan().any():
        return float("inf"), "another infinity"
    finite = y.isfinite()
    if not finite.any():
        return 0.0, ""
    difference, largest = (x - y)[finite].abs().max(), y[finite].abs().max()
    return (difference / largest.clamp_min(torch.finfo(found.dtype).tiny)).item() if difference else 0.0, ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.values", description=__doc__)
    parser.add_argument("--configurations", type=int, default=3000, help="how many (default 3000)")
    parser.add_argument("--seed", type=int, default=0, help="of the configurations (default 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--examples", type=int, default=2, help="shown of each cell beyond its limit (default 2)")
    parser.add_argument("--save", type=Path, help="write all comparisons there, as JSON")
    options = parser.parse_args(arguments)
    console, found = Console(width=None if sys.stdout.isatty() else 130), []
    try:
        for several in track(_all(options), "configurations", options.configurations, console=Console(stderr=True)):
            found += several
    except KeyboardInterrupt:
        console.print(f"\nInterrupted after {len(found)} comparisons.")
    beyond = show(console, found, options.examples)
    if options.save:
        options.save.write_text(json.dumps([one._asdict() for one in found], indent=1) + "\n")
    return int(beyond)


def _all(options: argparse.Namespace) -> Iterator[list[Comparison]]:
    work, pieces = "tests.fuzz.values:compare", range(options.configurations)
    for piece, answer in in_processes(work, (options.seed,), pieces, count=options.workers, limit=120.0):
        if isinstance(answer, list):
            yield answer
        else:
            drawn = draw_configuration(options.seed, piece)
            line = f"{drawn.operator}({drawn.arguments})"
            yield [Comparison(drawn.operator, "any", drawn.dtype, float("inf"), line, f"{answer[0]}: {answer[1]}")]


def show(console: Console, found: Sequence[Comparison], examples: int) -> bool:
    """The table of worst errors, and what is beyond the limits; whether anything is."""
    table = Table(title=f"worst error of {len(found)} comparisons")
    for heading in ("operator", "form", *LIMITS):
        table.add_column(heading, no_wrap=True)
    rows = sorted({(one.operator, one.form) for one in found})
    is_beyond = False
    for row in rows:
        cells = []
        for dtype, limit in LIMITS.items():
            errors = [one.error for one in found if (one.operator, one.form, one.dtype) == (*row, dtype)]
            over = sum(error > limit for error in errors)
            is_beyond |= over > 0
            text = f"{max(errors):.1e}" if errors else ""
            cells.append(f"[red]{text} {over}/{len(errors)}[/]" if over else text)
        table.add_row(*row, *cells)
    console.print(table)
    shown: dict[tuple[str, str, str], int] = {}
    for one in sorted(found, key=lambda one: len(one.line)):
        cell = (one.operator, one.form, one.dtype)
        if one.error <= LIMITS[one.dtype] or shown.setdefault(cell, 0) >= examples:
            continue
        shown[cell] += 1
        console.print(
            f"{one.operator}, {one.form}, {one.dtype}: {one.error:.2g} {one.what}", style="bold", markup=False
        )
        console.print(f"    {one.line}", markup=False, highlight=False, soft_wrap=True)
    return is_beyond


if __name__ == "__main__":
    raise SystemExit(main())
