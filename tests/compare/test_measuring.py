"""The measurements of a run, in their process: who fails or dies costs its own rows; what is there is kept."""

from __future__ import annotations

import io
import json
from datetime import datetime

import pytest
from rich.console import Console

from attensor.compare.artefacts import Balance, Measured
from attensor.compare.config import CompareConfig
from attensor.compare.folder import is_measured, new_run
from attensor.compare.measure import Measurement
from attensor.compare.measuring import run_measurements
from attensor.compare.phases import Watch
from attensor.compare.plan import make_plan
from attensor.compare.results import collect
from attensor.compare.tasks import open_task
from attensor.errors import Stopped
from attensor.lab import Display, Interruption, Reporter

MIXERS = """
import os
from torch import nn


class Plain(nn.Module):
    def __init__(self, hidden_size, num_heads):
        super().__init__()
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x):
        self.look(x.shape[1])
        return self.proj(x)

    def look(self, length):
        pass


class Dies(Plain):
    def look(self, length):
        if length > 256:
            print("nobody expects this")
            os._exit(7)


class Breaks(Plain):
    def look(self, length):
        if length > 256:
            raise IndexError("too long")


class Never(Plain):
    def look(self, length):
        raise IndexError("never")
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 400)
    (folder / "mine.py").write_text(MIXERS)
    names = ",".join(["softmax", "linear", *(f"{folder}/mine.py:{name}" for name in ("Dies", "Breaks", "Never"))])
    options = {"data": str(folder / "text.txt"), "mechanisms": names, "steps": 1, "length": 32, "max_length": 512}
    return make_plan(CompareConfig(**options, device="cpu"), created="now", command="attensor compare")


@pytest.fixture
def run(plan, tmp_path):
    """As after the training: sizes and a model of each."""
    from safetensors.torch import save_model

    run = new_run(tmp_path, datetime(2026, 11, 22), plan)
    open_task(plan, run).prepare()
    for subject in plan.subjects:
        subject.folder(run).mkdir()
        Balance(40, 10_000, 10_000).save(subject.folder(run) / "balance.json")
        model = plan.task.build(plan, plan.mixers(subject), 40)
        save_model(model, str(subject.checkpoint(run, plan.seeds[0])))
    return run


def measure(run, plan, names):
    shown, subjects = io.StringIO(), [plan.subject(name) for name in names]
    with Display("all", names, console=Console(file=shown, width=200)) as display:
        watch, told = Watch(plan, display), {"interruption": Interruption(), "on_end": lambda: None}
        run_measurements(run, plan, subjects, watch=watch, **told)
    return {row["name"]: row for row in collect(run, plan)["mechanisms"]}, shown.getvalue()


def lengths(row):
    return [line["length"] for line in row["cost"]]


@pytest.mark.slow
def test_failures_and_deaths_cost_their_own_rows(run, plan):
    names = ["softmax", "Dies", "Never", "Breaks", "linear"]
    found, shown = measure(run, plan, names)
    for name in ("softmax", "linear"):
        assert lengths(found[name]) == [256, 512]
        assert [line["batch"] for line in found[name]["generation"]] == [1, 8, 32]
        assert {line["batch"] for line in found[name]["decode"]} == {1, 8, 32}
        assert is_measured(run, plan.subject(name), plan)
    assert lengths(found["Dies"]) == lengths(found["Breaks"]) == [256]
    assert found["Dies"]["cost_stopped"] == "failed: the process ended with status 7: nobody expects this"
    assert found["Breaks"]["cost_stopped"] == "stopped at 256: 512 failed (IndexError: too long)"
    assert found["Breaks"]["decode_stopped"].startswith("Breaks has no new_cache()")
    assert found["Never"]["cost"] == []
    assert found["Never"]["cost_stopped"].startswith("failed: IndexError: never (mine.py, line ")
    assert "Dies failed: the process ended with status 7" in shown
    assert "Never failed: IndexError: never" in shown
    assert "measures cost, 256" in shown
    assert not (run / "at-work.txt").exists()
    # the second process went on where the first one had ended
    assert shown.count("softmax: measures cost") == 1


class Stops(Reporter):
    """Asks to stop when the event comes that `when` describes."""

    def __init__(self, **when):
        super().__init__()
        self.when, self.events = when, []

    def event(self, **facts):
        self.events.append(facts)
        self.stop = self.stop or self.when.items() <= facts.items()


@pytest.mark.slow
def test_a_stopped_measurement_goes_on_where_it_was(run, plan):
    subjects = [plan.subject(name) for name in ("softmax", "linear")]
    with pytest.raises(Stopped):
        Measurement(plan, subjects, run, Stops(stage="cost", size="512")).run()
    first = {s.name: Measured.load(s.folder(run) / "cost.json") for s in subjects}
    assert {name: [line["length"] for line in found.rows] for name, found in first.items()} == {
        "softmax": [256],
        "linear": [256],
    }
    assert not any(found.finished for found in first.values())

    with pytest.raises(Stopped):
        Measurement(plan, subjects, run, Stops(stage="decode", size="512")).run()
    second = {s.name: Measured.load(s.folder(run) / "cost.json") for s in subjects}
    assert all(second[name].rows[0] == first[name].rows[0] for name in first)
    decoded = Measured.load(subjects[1].folder(run) / "decode.json")
    assert [line["context"] for line in decoded.rows] == [128, 256]

    reporter = Stops(stage="nothing")
    Measurement(plan, subjects, run, reporter).run()
    assert "cost" not in {event["stage"] for event in reporter.events}
    whole = Measured.load(subjects[1].folder(run) / "decode.json")
    assert whole.samples[:2] == decoded.samples
    # the state of linear attention is as large at each context
    assert len({line["ms_per_token"] for line in whole.rows if line["batch"] == 1}) == 1
    assert [event["name"] for event in reporter.events if event["stage"] == "end"] == ["softmax", "linear"]
    assert all(is_measured(run, subject, plan) for subject in subjects)


@pytest.mark.slow
def test_a_process_that_cannot_begin_fails_all(run, plan, monkeypatch):
    from attensor.lab import Outcome, Pool

    def dead(self, cells, *, on_end, **_):
        on_end(cells[0], Outcome(reason="no memory"))

    monkeypatch.setattr(Pool, "run", dead)
    found, _ = measure(run, plan, ["softmax", "linear"])
    assert {found[name]["cost_stopped"] for name in ("softmax", "linear")} == {"failed: no memory"}
    assert json.loads((run / "linear" / "failed-measure.json").read_text()) == {"reason": "no memory"}
