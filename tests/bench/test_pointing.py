"""`attensor bench pointing`: all contestants compute the same, and paths too, and tours have a table."""

from __future__ import annotations

from rich.console import Console

from attensor.bench.contest import Contest
from attensor.bench.contestants import pointing
from attensor.bench.contestants.gaze import GAZE_PEERS, ScanpathProblem
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


def test_paths_of_all_contestants_are_the_same() -> None:
    """Over the target and elsewhere: a path over one object would say little."""
    problem, contest = ScanpathProblem(8, 5, preset="tiny"), Contest(GAZE_PEERS)
    contest.check([problem])
    assert [check.max_error for check in contest.checks] == [0.0] * 3
    assert {int(problem.scene.target)} < set(GAZE_PEERS[0].build(problem).forward().int().tolist())


def test_a_solver_that_fails_or_has_no_answer_is_said() -> None:
    def fails(points):
        raise RuntimeError("no licence")

    assert pointing._timed(fails, [None])[1] is None
    assert "no licence" in pointing._timed(fails, [None])[0]
    assert pointing._timed(lambda points: None, [None]) == ("-", None)
