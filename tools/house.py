"""The size and shape of the house, as a table: `make house`, or `python tools/house.py [ROOT]` for another checkout.

A report, not a gate: it ends with status 0 whatever it finds.

- Arguments: every parameter of a function counts, keyword-only ones and `*args`, `**kwargs` too; `self` and `cls` do
  not. Public is what a module without an underscore in its dotted name lists in `__all__` or imports as itself; of a
  public class its methods without an underscore, `__init__` and `__call__`. `neighborhood_attention` and its relatives
  are a documented exception and have a row of their own, and so have functions under `triton.jit`.
- Lines: of a function from `def` to its last line, the docstring included; of a file all of them.
- Circles: sets of files that import each other, directly or in turn. Imports inside functions count, those under
  `if TYPE_CHECKING` do not; importing a name of a package means its `__init__.py`.
- Files and moves: of one call `linear_attention(q, k, v, log_decay=g)` with q, k, v [1, 32, 2, 64] and g [1, 32, 2] in
  float32, after five others. `sys.setprofile` names the file of each Python function of attensor that is called; files
  are counted once, a move is a call in another file than the call before, the entry included.
- Overhead: the median time of such a call on one thread.
"""

from __future__ import annotations

import ast
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

LONGEST_FUNCTION = 40
EXCEPTION = "neighborhood_attention"
CALLS = 1000


@dataclass(frozen=True)
class Function:
    """A Python function of the tree: where it is, how long, how many arguments, and who may call it."""

    place: str
    lines: int
    arguments: int
    is_public: bool
    is_kernel: bool


@dataclass(frozen=True)
class Row:
    """A line of the table; `where` names the example that decides it."""

    measure: str
    found: float
    goal: float | None = None
    where: str = ""
    unit: str = ""


def modules(source: Path) -> dict[str, ast.Module]:
    """The modules of the package `source` by their dotted names; a package's `__init__.py` has the package's name."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def functions(trees: dict[str, ast.Module]) -> list[Function]:
    """All functions and methods, nested ones too; `typing.overload` repeats what another says and is left out."""
    return [f for name, tree in trees.items() for f in _functions(tree, name, _public_names(name, tree))]


def _functions(node: ast.AST, place: str, public: set[str] | None, *, in_class: bool = False) -> Iterator[Function]:
    # public: the names that count as public at this level, None for all without an underscore
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _functions(child, place, public, in_class=in_class)
            continue
        name = child.name
        is_open = not name.startswith("_") or name in ("__init__", "__call__")
        is_public = is_open if public is None else name in public
        inside = f"{place}.{name}"
        if isinstance(child, ast.ClassDef):
            yield from _functions(child, inside, None if is_public else set(), in_class=True)
            continue
        decorators = {ast.unparse(d).partition("(")[0] for d in child.decorator_list}
        if "overload" not in decorators:
            bound = in_class and "staticmethod" not in decorators
            lines = (child.end_lineno or child.lineno) - child.lineno + 1
            yield Function(inside, lines, _arguments(child.args) - bound, is_public, "triton.jit" in decorators)
        yield from _functions(child, inside, set())


def _arguments(of: ast.arguments) -> int:
    named = len(of.posonlyargs) + len(of.args) + len(of.kwonlyargs)
    return named + (of.vararg is not None) + (of.kwarg is not None)


def _public_names(module: str, tree: ast.Module) -> set[str]:
    if any(part.startswith("_") for part in module.split(".")):
        return set()
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names |= set(ast.literal_eval(node.value))
        elif isinstance(node, ast.ImportFrom):
            names |= {each.name for each in node.names if each.asname == each.name}
    return names


def circles(trees: dict[str, ast.Module]) -> list[list[str]]:
    """The sets of modules that import each other."""
    edges = {name: {t for node in _runtime(tree) for t in _targets(node, trees)} for name, tree in trees.items()}
    reached = {name: _reached(name, edges) for name in edges}
    sets = {frozenset(b for b in reached[a] if a in reached[b]) for a in edges if a in reached[a]}
    return sorted(sorted(each) for each in sets)


def _runtime(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run, in other words none under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from _runtime(child)


def _targets(node: ast.AST, trees: dict[str, ast.Module]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (each.name for each in node.names if each.name in trees)
    elif isinstance(node, ast.ImportFrom) and node.module in trees:
        inside = (f"{node.module}.{each.name}" for each in node.names)
        yield from (full if full in trees else node.module for full in inside)


def _reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = edges[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def files_called(function: Callable[[], Any], source: Path) -> list[str]:
    """The file of each Python function below `source` that a call of `function` calls, in order."""
    below = str(source) + os.sep
    called: list[str] = []

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(below):
            called.append(frame.f_code.co_filename.removeprefix(below))

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return called


def moves(files: list[str]) -> int:
    """How often the next call is in another file, the entry included."""
    return sum(a != b for a, b in zip([None, *files], files))


def median_microseconds(function: Callable[[], Any]) -> float:
    """The median time of one call."""
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)


def static_rows(source: Path, trees: dict[str, ast.Module]) -> Iterator[Row]:
    """What the text says."""
    known = functions(trees)
    python = [f for f in known if not f.is_kernel]
    ordinary = [f for f in python if EXCEPTION not in f.place.rpartition(".")[2]]
    kinds = (
        ("most arguments, public", [f for f in ordinary if f.is_public], 11),
        ("most arguments, private", [f for f in ordinary if not f.is_public], 14),
        (f"most arguments, {EXCEPTION} (exception)", [f for f in python if f not in ordinary], None),
        ("most arguments, Triton", [f for f in known if f.is_kernel], None),
    )
    for measure, some, goal in kinds:
        most = max(some, key=lambda f: f.arguments, default=Function("none", 0, 0, True, True))
        yield Row(measure, most.arguments, goal, most.place)
    for measure, some, goal in (("", python, 8), (", Triton", [f for f in known if f.is_kernel], None)):
        long = sorted((f for f in some if f.lines > LONGEST_FUNCTION), key=lambda f: -f.lines)
        where = ", ".join(f"{f.place} {f.lines}" for f in long[:3])
        yield Row(f"functions above {LONGEST_FUNCTION} lines{measure}", len(long), goal, where)
    found = circles(trees)
    yield Row("circles of files", len(found), 0, "; ".join(" ".join(each) for each in found))


def size_rows(source: Path) -> Iterator[Row]:
    """Lines of the whole and of its biggest files."""
    paths = [path for path in source.rglob("*") if path.suffix in (".py", ".cpp", ".h")]
    lines = {str(path.relative_to(source)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    yield Row("src lines, Python and C++", sum(lines.values()), 24_249)
    for name in sorted(lines, key=lambda name: -lines[name])[:5]:
        yield Row("lines of a big file", lines[name], 400, name)


def call_rows(source: Path) -> Iterator[Row]:
    """What a call of `linear_attention` costs beside its arithmetic, by default and in the torch back-end."""
    import torch

    import attensor
    from attensor import ops

    if Path(attensor.__file__).parent != source:
        raise SystemExit(f"attensor was imported from {attensor.__file__}, not from {source}.")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 32, 2, 64) for _ in range(3))
    decay = -torch.rand(1, 32, 2)
    for backend, goals in ((None, (6, 10, 80)), ("torch", (7, 16, 250))):
        call = functools.partial(ops.linear_attention, q, k, v, log_decay=decay, backend=backend)
        for _ in range(5):
            call()
        files = files_called(call, source)
        took = median_microseconds(call)
        name = "torch" if backend else "default"
        form = "C++" if any("cpp" in file for file in files) else "torch"
        yield Row(f"one call, {name}: Python files", len(set(files)), goals[0], f"form taken: {form}")
        yield Row(f"one call, {name}: moves between files", moves(files), goals[1])
        yield Row(f"one call, {name}: overhead", took, goals[2], "T = 32, one thread", " us")


def table(rows: list[Row]) -> Table:
    """The rows, those at their goal in green."""
    drawn = Table("measure", "found", "goal", "where", title="The house", title_justify="left")
    for row in rows:
        goal, color = "", "default"
        if row.goal is not None:
            goal, color = f"<= {row.goal:,.0f}{row.unit}", "green" if row.found <= row.goal else "yellow"
        drawn.add_row(row.measure, f"[{color}]{row.found:,.0f}{row.unit}", goal, row.where)
    return drawn


def main() -> None:
    """Print the table for the checkout named on the command line, or for the one this file is in."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    source = root.resolve() / "src" / "attensor"
    sys.path.insert(0, str(source.parent))
    rows = [*static_rows(source, modules(source)), *call_rows(source), *size_rows(source)]
    Console(width=None if sys.stdout.isatty() else 160).print(table(rows))


if __name__ == "__main__":
    main()
