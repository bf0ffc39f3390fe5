"""Measurements in turns: order, what a failure costs, what is kept, and when a size is not tried."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from attensor.compare.rounds import Contender, in_turns, rounds_within
from attensor.errors import Stopped

SIZES = [(2,), (5,), (11,)]


class Scribe(Contender):
    """Writes down what is asked of it."""

    def __init__(self, name, notes, *, rounds=2, rows=(), too_large=99, fails_at=None):
        super().__init__(name, rows, limit=9.0)
        self.notes, self.rounds, self.too_large, self.fails_at = notes, rounds, too_large, fails_at

    def facts(self, size):
        return {"length": size[0]}

    def why_not(self, size):
        return f"{size[0]} is too large" if size[0] >= self.too_large else None

    def prepare(self, size):
        self.size = size
        self._note("P")
        return self.rounds

    def turn(self):
        self._note("t")

    def finish(self):
        self._note("F")
        self.rows.append(self.facts(self.size))

    def _note(self, what):
        if self.fails_at == (what, self.size[0]):
            raise IndexError("9")
        self.notes.append(f"{what}{self.name}{self.size[0]}")


def lengths(contender):
    return [row["length"] for row in contender.rows]


def test_mechanisms_take_turns_at_each_size():
    notes = []
    in_turns([Scribe("a", notes), Scribe("b", notes, rounds=3)], SIZES[:2])
    at_2 = ["Pa2", "Pb2", "tb2", "tb2", "ta2", "ta2", "tb2", "Fa2", "Fb2"]
    assert notes == at_2 + [note.replace("2", "5") for note in at_2]


def test_rows_that_are_there_are_not_measured_again():
    notes = []
    half, new = Scribe("a", notes, rows=[{"length": 2}, {"length": 5}]), Scribe("b", notes)
    in_turns([half, new], SIZES)
    assert [note for note in notes if "a" in note] == ["Pa11", "ta11", "ta11", "Fa11"]
    assert lengths(half) == lengths(new) == [2, 5, 11]


@pytest.mark.parametrize("stage", ["P", "t", "F"])
def test_a_failure_costs_its_own_further_rows(stage):
    bad, good = Scribe("a", [], fails_at=(stage, 5)), Scribe("b", [])
    kept = []
    in_turns([bad, good], SIZES, on_row=lambda contender: kept.append((contender.name, lengths(contender)[-1])))
    assert (lengths(bad), lengths(good)) == ([2], [2, 5, 11])
    assert bad.stopped == "stopped at 2: 5 failed (IndexError: 9)"
    assert bad.failure.startswith("IndexError: 9 (test_rounds.py, line ")
    assert kept == [("a", 2), ("b", 2), ("b", 5), ("b", 11)]


def test_a_failure_at_the_first_size_leaves_its_reason():
    bad = Scribe("a", [], fails_at=("P", 2))
    in_turns([bad], SIZES)
    assert (bad.rows, bad.stopped, bad.failure[:13]) == ([], None, "IndexError: 9")


def test_sys_exit_is_a_failure_like_others():
    class Leaves(Scribe):
        def turn(self):
            raise SystemExit(3)

    bad, good = Leaves("a", []), Scribe("b", [])
    in_turns([bad, good], SIZES)
    assert (lengths(bad), lengths(good)) == ([], [2, 5, 11])


def test_what_would_be_too_large_is_not_tried_and_the_first_reason_stays():
    notes = []
    contender = Scribe("a", notes, too_large=5)
    in_turns([contender], SIZES)
    assert lengths(contender) == [2]
    assert contender.stopped == "5 is too large"
    assert not any("5" in note or "11" in note for note in notes)


def test_it_stops_between_two_turns_and_keeps_earlier_sizes():
    asked = []

    def on_turn(contender):
        asked.append(contender.name)
        if len(asked) > 6:
            raise Stopped("now")

    first, second = Scribe("a", [], rounds=1), Scribe("b", [], rounds=1)
    with pytest.raises(Stopped):
        in_turns([first, second], SIZES, on_turn=on_turn)
    assert lengths(first) == lengths(second) == [2]
    assert "".join(asked) == "ab" + "ab" + "ab" + "a"


def test_the_time_of_each_is_its_own(monkeypatch):
    from attensor.compare import rounds

    clock = iter(range(100))
    monkeypatch.setattr(rounds.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(rounds, "queued_seconds", lambda: 0.0)
    often, seldom = Scribe("a", [], rounds=4), Scribe("b", [], rounds=1)
    in_turns([often, seldom], SIZES[:1])
    assert (often.spent, seldom.spent) == (6.0, 3.0)  # to prepare, the turns, to finish


def test_rounds_fit_into_the_time():
    assert rounds_within(1.0, 0.1, fewest=3, most=15) == 10
    assert rounds_within(1.0, 9.0, fewest=3, most=15) == 3
    assert rounds_within(1.0, 0.0, fewest=3, most=15) == 15


def test_all_are_asked_before_one_takes_memory():
    notes = []

    class Asks(Scribe):
        def why_not(self, size):
            notes.append(f"?{self.name}{size[0]}")

    in_turns([Asks("a", notes, rounds=1), Asks("b", notes, rounds=1)], SIZES[:1])
    assert notes == ["?a2", "?b2", "Pa2", "Pb2", "ta2", "tb2", "Fa2", "Fb2"]


def test_what_a_failed_call_held_is_let_go():
    held = weakref.WeakSet()

    class Holds(Scribe):
        def turn(self):
            tensor = torch.ones(3)
            held.add(tensor)
            raise IndexError(9)

    in_turns([Holds("a", [])], SIZES)
    gc.collect()
    assert not held


def test_the_last_size_has_its_own_account(monkeypatch):
    from attensor.compare import rounds

    clock = iter(range(100))
    monkeypatch.setattr(rounds.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(rounds, "queued_seconds", lambda: 0.0)
    contender = Scribe("a", [], rounds=4)
    in_turns([contender], SIZES)
    assert (contender.spent, contender.spent_last) == (18.0, 5.0)
