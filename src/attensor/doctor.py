"""`attensor doctor`: what is installed here, and which back-end each operator would take and why."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
from importlib import metadata

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

import attensor
from attensor.bench.machine import processor, version_of
from attensor.ops import _operator
from attensor.ops._native import build as kernels
from attensor.ops._native.compiler import compiler, version

__all__ = ["choices", "extras", "facts", "run"]


def run(console: Console, *, build: bool = False) -> None:
    """Print the three tables.

    Args:
        console: where.
        build: compile the C++ kernels first, unless they are there.
    Raises:
        BackendError: they cannot be built.
    """
    if build:
        with console.status("compiling the C++ kernels ..."):
            kernels.build()
    console.print(_table(("", "here"), facts()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    console.print(_table(("operator", f"takes on {device.type}", "because"), choices(device)))
    console.print(_table(("extra", "state"), extras()))


def facts() -> list[tuple[str, str]]:
    """Name and value of what decides how attensor runs: versions, processor, threads, compiler, C++, Triton, CUDA."""
    return [
        ("attensor", attensor.__version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", torch.__version__),
        ("processor", processor()),
        ("cores", str(os.cpu_count())),
        ("threads", f"{torch.get_num_threads()} (OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')})"),
        ("vector instructions", torch.backends.cpu.get_cpu_capability()),
        ("C++ compiler", _compiler()),
        ("C++ kernels", _kernels()),
        ("CUDA", _cuda()),
        ("Triton", _triton()),
    ]


def choices(device: torch.device) -> list[tuple[str, str, str]]:
    """Operator, the back-end it would take on `device`, and for every other candidate why it does not."""
    import attensor.ops  # noqa: F401  fills the table of operators

    rows = []
    for name, operator in sorted(_operator.OPERATORS.items()):
        refusals = {candidate: operator.why_not(candidate, device) for candidate in _operator.BACKENDS}
        taken = operator.best(device) or "none"
        others = (f"{c}: {why or 'can run, is slower'}" for c, why in refusals.items() if c != taken)
        rows.append((name, taken, "; ".join(others)))
    return rows


def extras() -> list[tuple[str, str]]:
    """Extra of the package and whether all it brings is installed, or the line that installs it."""
    wanted: dict[str, list[str]] = {}
    for requirement in metadata.requires("attensor") or []:
        parts = re.match(r"([\w.-]+).*\bextra == ['\"](\w+)['\"]", requirement)
        if parts and parts[1] != "attensor":
            wanted.setdefault(parts[2], []).append(parts[1])
    rows = []
    for extra, packages in wanted.items():
        missing = [package for package in packages if version_of(package) is None]
        line = f'missing {", ".join(missing)}: pip install "attensor[{extra}]"'
        rows.append((extra, line if missing else "installed: " + ", ".join(f"{p} {version_of(p)}" for p in packages)))
    return rows


def _table(columns: tuple[str, ...], rows: list[tuple[str, str]] | list[tuple[str, str, str]]) -> Table:
    table = Table(*(Column(name, overflow="fold") for name in columns))
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _compiler() -> str:
    command = compiler()
    if command is None:
        return "none: torch.compile needs one on a CPU (Debian: apt-get install g++)"
    return (version(tuple(command)) or f"{command[0]} --version gives no answer").partition("\n")[0]


def _kernels() -> str:
    why = kernels.why_not(demanded=True)
    return f"none: {why}" if why else kernels.library()._name


def _cuda() -> str:
    if torch.cuda.is_available():
        return f"{torch.version.cuda}, {torch.cuda.get_device_name()}"
    if torch.version.cuda is None:
        return "no: this is a CPU build of torch"
    return f"no: torch is built for CUDA {torch.version.cuda} but finds no usable GPU"


def _triton() -> str:
    if importlib.util.find_spec("triton") is not None:
        return f"{version_of('triton')}" + ("" if torch.cuda.is_available() else ", idle: its kernels need a GPU")
    if platform.system() != "Linux":
        return f"no: there is none for {platform.system()}"
    why = "" if torch.cuda.is_available() else "; of use with a GPU only"
    return f'no: not installed, pip install "attensor[triton]"{why}'
