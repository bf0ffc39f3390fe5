"""A phase of all mechanisms: what fails costs its row, and what happens is a bar or a line."""

from __future__ import annotations

import io
from datetime import datetime

import pytest
from rich.console import Console

from attensor.compare.config import CompareConfig
from attensor.compare.folder import new_run
from attensor.compare.phases import Watch, run_phase
from attensor.compare.plan import make_plan
from attensor.compare.results import collect
from attensor.lab import Display, Interruption, Outcome, Pool


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    text = tmp_path_factory.mktemp("data") / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 400)
    config = CompareConfig(
        data=str(text), mechanisms="softmax,gla,linear", budget="6s", length=32, jobs=2, device="cpu"
    )
    return make_plan(config, created="now", command="attensor compare")


@pytest.fixture
def run(plan, tmp_path):
    return new_run(tmp_path, datetime(2026, 11, 22), plan)


@pytest.mark.parametrize("reason", ["the process was killed by the system", None])
def test_a_failure_is_written_down_and_costs_its_row_alone(run, plan, monkeypatch, reason):
    def here(self, cells, *, on_end, at_once, **_):
        for cell in cells:
            on_end(cell, Outcome(reason=reason if cell.arguments["name"] == "gla" else None))

    monkeypatch.setattr(Pool, "run", here)
    written = []
    with Display("all", ["softmax", "gla", "linear"], console=Console(file=io.StringIO())) as display:
        watch, told = Watch(plan, display), {"interruption": Interruption(), "on_end": lambda: written.append(1)}
        run_phase(run, plan, "train", plan.subjects, at_once=2, watch=watch, **told)
    assert len(written) == 3
    rows = {row["name"]: row for row in collect(run, plan)["mechanisms"]}
    assert rows["gla"]["reason"] == (reason or rows["softmax"]["reason"])
    assert (rows["gla"]["status"], rows["softmax"]["status"]) == ("failed" if reason else "unfinished", "unfinished")
    assert rows["softmax"]["missing"]["score"] == rows["softmax"]["reason"]


EVENTS = [
    ("softmax", {"stage": "laws"}),
    ("softmax", {"ended": None, "phase": "calibrate"}),
    ("softmax", {"stage": "pilot-0", "fraction": 0.2, "seconds_left": 3.0, "score": None}),
    ("softmax", {"stage": "seed-0", "fraction": 0.5, "seconds_left": 1.0, "score": 2.5}),
    ("softmax", {"stage": "seed-0", "fraction": 1.0, "seconds_left": 0.0, "score": 2.4}),
    ("softmax", {"ended": None, "phase": "train"}),
    ("gla", {"ended": "leaks [the] future", "phase": "train"}),
    ("softmax", {"stage": "cost", "name": "softmax", "size": "256"}),
    ("softmax", {"ended": None, "phase": "measure"}),
]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown(plan, is_terminal):
    file = io.StringIO()
    names = [subject.name for subject in plan.subjects]
    with Display("all", names, console=Console(file=file, force_terminal=is_terminal, width=120)) as display:
        watch = Watch(plan, display)
        before = display.seconds_left()
        for name, event in EVENTS:
            if "stage" in event:
                watch.event(name, event)
            else:
                watch.ended(name, event["phase"], event["ended"])
        assert display.done == 6
        assert display.seconds_left() < before
    shown = file.getvalue()
    assert "leaks [the] future" in shown
    assert "left" in shown
    assert ("seed-0, 2.500" in shown) == (not is_terminal)  # a terminal shows the last state only
    assert "done" in shown
