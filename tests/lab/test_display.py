"""The time left is the processes', and a terminal gets bars where a pipe gets lines."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from attensor.lab import Display, Estimate
from attensor.lab.display import clock


def test_work_side_by_side_takes_as_long_as_its_longest_part_and_as_its_share() -> None:
    assert Estimate({"a": 7.0, "b": 3.0, "c": 2.0}, 2).seconds() == 7.0
    assert Estimate({"a": 3.0, "b": 3.0, "c": 2.0}, 2).seconds() == 4.0
    assert Estimate({"a": 3.0, "b": None}, 1).seconds() == pytest.approx(6.0, abs=0.1)


def test_what_has_ended_tells_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    estimate = Estimate(dict.fromkeys("abcd"), 2)
    assert estimate.seconds() is None
    now[0] += 5.0
    estimate.finished("a", 5.0)
    # three of 5 seconds for two processes, of which one has spent 2.5 more than the ended cell explains
    assert estimate.seconds() == pytest.approx(7.5 - 2.5)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_line_or_a_bar(is_terminal: bool) -> None:
    file = io.StringIO()
    with Display("all", ["first"], console=Console(file=file, force_terminal=is_terminal, width=120)) as display:
        work = display.expect({"first": 90.0}, 1, done=2)
        display.tick()
        display.row("first", "seed-0, 2.500", stage="seed")
        display.row("first", "seed-0, 2.400", stage="seed")
        work.finished("first")
        display.done += 1
        display.tick()
        display.alarm("second failed", "leaks [the] future")
    shown = file.getvalue()
    assert "leaks [the] future" in shown
    assert ("3 of 3" in shown) == is_terminal
    assert ("2/3  0:00, about 1:30 left  first: seed-0, 2.500\n" in shown) == (not is_terminal)
    assert ("2.500" in shown) == (not is_terminal)  # a terminal shows the last state only
    assert ("2.400" in shown) == is_terminal


def test_a_pipe_gets_one_line_a_stage_without_codes_or_returns_however_long_it_is() -> None:
    file = io.StringIO()
    state = "a state that is " + "very " * 30 + "long"
    with Display("all", ["first"], console=Console(file=file, width=80)) as display:
        work = display.expect({"first": None, "second": None}, 1)
        for stage in ("a", "a", "b"):
            display.row("first", state, stage=stage, fraction=0.5)
            display.tick()
        work.finished("first", 3.0)
        display.done += 1
        display.row("first", "done", stage="end")
        display.alarm("second failed", state)
    lines = file.getvalue().splitlines()
    assert lines[:2] == [f"0/2  0:00  first: {state}"] * 2
    assert lines[2].startswith("1/2  0:00, about 0:0")
    assert lines[2].endswith(" left  first: done")
    assert lines[3:] == [f"second failed: {state}"]
    assert "\r" not in file.getvalue()
    assert "\x1b" not in file.getvalue()


@pytest.mark.parametrize("has_widgets", [False, True])
def test_a_notebook_gets_bars_with_widgets_and_lines_without(
    has_widgets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"ipywidgets": object() if has_widgets else None}
    monkeypatch.setattr("attensor.lab.display.importlib.util.find_spec", found.__getitem__)
    lines: list[str] = []
    console = Console(file=io.StringIO(), force_jupyter=True)
    monkeypatch.setattr(console, "print", lambda text, **more: lines.append(str(text)))
    display = Display("all", ["gla"], console=console)
    display.row("gla", "trains", stage="seed-0", fraction=0.5)
    assert [line.split()[-2:] for line in lines] == ([] if has_widgets else [["gla:", "trains"]])


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (65.2, "1:05"), (7205.0, "2:00:05")])
def test_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
