"""The program that judges learners: its measure, and that each candidate can be trained."""

import json

import pytest

from tests.programs import learners


def test_tau_counts_pairs_in_the_same_order():
    first = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    assert learners.tau(first, first) == 1.0
    assert learners.tau(first, {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}) == -1.0
    assert learners.tau(first, {"a": 2.0, "b": 1.0, "c": 3.0, "d": 4.0}) == pytest.approx(4 / 6)


@pytest.mark.slow
@pytest.mark.parametrize("candidate", ["plain", "counts-muon-pairs", "counts-half-batch"])
def test_a_candidate_is_trained_and_ordered(candidate, capsys, monkeypatch):
    monkeypatch.setattr("attensor.compare.counts.ORDER", 5)
    options = ["learners", "--candidates", candidate, "--mechanisms", "softmax,linear", "--points", "1,2"]
    monkeypatch.setattr("sys.argv", options)
    learners.main()
    first, second, *orders = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in (first, second)]
    assert [row["mechanism"] for row in rows] == ["softmax", "linear"]
    assert all(0 < score < 9 for row in rows for score in row["scores"].values())
    assert ["tau" in line for line in orders] == [True, True]
