"""`attensor bench pointing`: all contestants compute the same, and paths too, and tours have a table."""

from __future__ import annotations

from rich.console import Console

from attensor.bench.contestants import pointing
from attensor.bench.hold import hold
from attensor.commands.bench_pointing import BenchPointing

OPTIONS = BenchPointing(lengths=(5,), batch_size=2, hidden_size=8, rounds=1, objects=(5,), fixations=2, cities=(5, 13))


def test_contestants_agree_and_tours_are_counted() -> None:
    console = Console(record=True, width=200, file=None)
    assert hold("pointing", OPTIONS, console) == 0
    shown = console.export_text()
    assert "one tensor" in shown
    assert "the authors' loop" in shown
    assert "local search" in shown


def test_a_solver_that_fails_or_has_no_answer_is_said() -> None:
    def fails(points):
        raise RuntimeError("no licence")

    assert pointing._timed(fails, [None])[1] is None
    assert "no licence" in pointing._timed(fails, [None])[0]
    assert pointing._timed(lambda points: None, [None]) == ("-", None)
