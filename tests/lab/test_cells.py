"""Cells: computed by processes with one thread, kept as they finish, computed once, and named when they fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attensor.lab import Cell, CellError, Outcome, Pool, run_cells

from .cells import misbehave, overlap, square

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_cells_are_computed_by_processes_with_one_thread_and_kept(tmp_path: Path) -> None:
    cells = [{"value": value} for value in (7, 2, 5, 3)]
    results = run_cells(tmp_path, square, cells)
    assert [result["square"] for result in results] == [49, 4, 25, 9]
    assert os.getpid() not in {result["process"] for result in results}
    assert {result["threads"] for result in results} == {1}
    kept = [json.loads(path.read_text()) for path in tmp_path.glob("square-*.json")]
    assert {(each["function"], each["cell"]["value"], each["result"]["square"]) for each in kept} == {
        ("square", value, value**2) for value in (2, 3, 5, 7)
    }


def test_only_a_resumed_recipe_takes_what_is_there_and_computes_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []

    def here(self: Pool, cells: list[Cell], *, on_end: Any, **_: Any) -> None:
        for cell in cells:
            computed.append(cell.arguments["value"])
            on_end(cell, Outcome(square(**cell.arguments)))

    monkeypatch.setattr(Pool, "run", here)
    cells = [{"value": value} for value in (2, 3, 5)]
    first = run_cells(tmp_path, square, cells[:2])
    assert run_cells(tmp_path, square, cells)[:2] == first
    assert computed == [2, 3, 5]
    run_cells(tmp_path, square, cells[:1], resume=False)
    assert computed == [2, 3, 5, 2]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", r"misbehave\(how='raise'\) failed: ValueError: three is too many"),
        pytest.param("die", r"misbehave\(how='die'\): the process was killed by the system", marks=pytest.mark.slow),
        pytest.param("nan", r"misbehave\(how='nan'\) failed: ValueError: Out of range", marks=pytest.mark.slow),
    ],
)
def test_a_failing_cell_names_itself(how: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CellError, match=reason):
        run_cells(tmp_path, misbehave, [{"how": how}])
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.slow
def test_measurements_run_alone(tmp_path: Path) -> None:
    cells = [{"value": value, "folder": str(tmp_path)} for value in range(4)]
    assert run_cells(tmp_path, overlap, cells, at_once=1) == [False] * 4


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_what_is_finished(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    program = (
        "from pathlib import Path; from tests.lab.cells import count_up_to\n"
        "from attensor.lab import run_cells\n"
        f"run_cells(Path({str(tmp_path)!r}), count_up_to, [dict(limit=n) for n in (1, 2, 3)], at_once=1)"
    )
    process = start([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("count_up_to-*.json"))) < 2:
        assert time.monotonic() < deadline, "the first two cells did not finish"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert errors.strip().endswith("KeyboardInterrupt")
    assert "Exception in" not in errors
    kept = [json.loads(path.read_text())["result"] for path in tmp_path.glob("*.json")]
    assert sorted(kept) == [1, 2]
