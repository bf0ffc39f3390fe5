"""`attensor bench triples`: contestants compute the same, at sizes a test can afford."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from attensor.bench.apart import Apart, FirstCall
from attensor.bench.contest import OURS, Contest
from attensor.bench.contestants import triples
from attensor.bench.hold import hold
from attensor.commands.bench_triples import BenchTriples

KINDS = ("distmult", "cp", "complex", "rescal", "tucker")


def test_contestants_agree_on_every_kind() -> None:
    bench = triples.bench(BenchTriples(kinds=KINDS))
    contest = Contest(bench.peers)
    contest.check(bench.small)
    assert {check.kind for check in contest.checks} == set(KINDS)
    for check in contest.checks:
        absent = check.peer == triples.PYKEEN and "is not installed" in check.reason
        assert absent or (check.max_error is not None and check.max_error < 1e-5), check


def test_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Apart, "first_call", lambda *_, **__: FirstCall(2**20))
    options = BenchTriples(entities=(11, 23), kinds=("complex", "tucker"), questions=5, dim=6, rounds=1)
    console = Console(record=True, width=150, file=io.StringIO())
    assert hold("triples", options, console) == 0
    shown = console.export_text()
    for part in (OURS, triples.LOOP, triples.DENSE, "complex, width 6, 5 questions", "tucker, width 3"):
        assert part in shown


def test_useful_work_is_the_product_with_all_entities() -> None:
    assert triples.PEERS[0].flops(triples.TriplesProblem(100, "complex", 8, 16)) == 2 * 8 * 100 * 32
    assert triples.PEERS[0].flops(triples.TriplesProblem(100, "rescal", 8, 16)) == 2 * 8 * 100 * 16
