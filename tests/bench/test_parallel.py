"""`attensor bench parallel`: whose figures stand in which column, the bytes that ranks hold, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from attensor.bench.contestants import parallel
from attensor.bench.hold import hold
from attensor.commands.bench_parallel import BenchParallel

OPTIONS = BenchParallel(lengths=(20, 10), num_heads=4, kv_rank=16, rotary_dim=8, hidden_size=32, rounds=1, save=True)


def held(folder: Path, **changed: Any) -> tuple[dict[str, Any], list[list[str]]]:
    """What a run writes, and the rows of its last table."""
    assert hold("parallel", replace(OPTIONS, **changed), Console(quiet=True), folder=folder) == 0
    table = next(folder.glob("*.md")).read_text().partition("## all 2 ranks at once")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return json.loads(next(folder.glob("*.json")).read_text()), rows[2:]


def test_figures_stand_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_ranks(function: Any, ranks: int, problem: Any, rounds: int) -> list[dict[str, dict[str, float]]]:
        assert (function, ranks, rounds) == (parallel.measure_rank, 2, 1)
        alone = {"attention": 0.004, "step": 0.010, "bytes": 96.0 * problem.length}
        ours = {"attention": 0.003, "step": 0.012, "bytes": 64.0 * problem.length}
        faster = {name: value if name == "bytes" else value / 2 for name, value in ours.items()}
        return [{"ours": faster, "heads alone": alone}, {"ours": ours, "heads alone": alone}]

    monkeypatch.setattr(parallel, "on_ranks", of_ranks)
    written, rows = held(tmp_path)
    assert rows == [
        ["10", "3.00", "4.00", "0.750", "1.20", "16 / 24", "640 / 960"],
        ["20", "3.00", "4.00", "0.750", "1.20", "16 / 24", "1,280 / 1,920"],
    ]
    assert [check["max_error"] < 1e-5 for check in written["checks"]] == [True] * 3
    held_bytes = {(row["peer"], row["problem"]["length"]): row["state_bytes"] for row in written["rows"]}
    for length in (10, 20):
        assert held_bytes["ours", length] == 4 * length * (8 + 8)
        assert held_bytes["heads alone", length] == held_bytes["one rank", length] == 4 * length * (16 + 8)


@pytest.mark.slow
def test_ranks_measure(tmp_path: Path) -> None:
    _, rows = held(tmp_path, lengths=(10,))
    assert rows[0][-2:] == ["16 / 24", "640 / 960"]
    assert all(float(cell) > 0 for cell in rows[0][1:5])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_heads": 3}, "--num-heads must be a multiple of --ranks 2, got 3"),
        ({"kv_rank": 15}, "--kv-rank must be a multiple of --ranks 2, got 15"),
    ],
    ids=str,
)
def test_what_cannot_be_shared_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parallel.bench(replace(OPTIONS, **changed))
