"""What a terminal and a pipe are shown of one training."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from attensor.lab import step_display
from attensor.lab.step_display import StepDisplay


@pytest.fixture
def now(monkeypatch):
    """A clock that is set by hand."""
    time = [100.0]
    monkeypatch.setattr(step_display.time, "monotonic", lambda: time[0])
    return time


def test_a_pipe_gets_a_line_for_a_score_and_every_half_minute(now):
    shown = io.StringIO()
    with StepDisplay(100, units=8, console=Console(file=shown, width=40)) as display:
        for step in range(41, 61):  # an earlier process has done 40
            now[0] += 2.0
            display.step(step, "top-1 50%" if step == 50 else "")
    assert shown.getvalue().splitlines() == [
        "step 50/100  4 images/s, about 1:40 left  top-1 50%",
    ]


def test_the_time_left_counts_what_this_process_has_seen(now):
    shown = io.StringIO()
    display = StepDisplay(10, units=3, unit="scenes", console=Console(file=shown, width=200))
    for step, seconds in ((3, 1.0), (4, 40.0)):
        now[0] += seconds
        display.step(step)
    # 41 s for two steps, six are left; the mean of a step is 0.9 * 1 + 0.1 * 40 s
    assert shown.getvalue() == "step 4/10  0.612 scenes/s, about 2:03 left\n"


def test_a_terminal_has_a_bar(now):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    with StepDisplay(4, units=5, console=console) as display:
        for step in range(1, 5):
            now[0] += 0.5
            display.step(step, "top-1 100%" if step == 4 else "")
    assert "step 4/4" in shown.getvalue()
    assert "10 images/s" in shown.getvalue()
    assert "step 4  top-1 100%" in shown.getvalue()
