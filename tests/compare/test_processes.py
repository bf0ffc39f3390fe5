"""Workers end in every possible way, and each way becomes a row's reason or a bar on the screen."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from datetime import datetime

import pytest
from rich.console import Console

from attensor.compare import processes
from attensor.compare.config import CompareConfig
from attensor.compare.folder import new_run
from attensor.compare.plan import make_plan
from attensor.compare.processes import Interruption, Workers
from attensor.compare.progress import Display
from attensor.compare.reporter import Reporter
from attensor.compare.results import collect
from attensor.compare.worker import reason
from attensor.errors import LawError


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


def ended(run, plan, monkeypatch, code, *, interruption=None):
    """What the parent is told when the workers run `code` instead of a training."""
    start = processes.subprocess.Popen
    monkeypatch.setattr(
        processes.subprocess, "Popen", lambda command, **kw: start([sys.executable, "-c", code, *command[3:]], **kw)
    )
    heard = []
    workers = Workers(run, plan, interruption or Interruption(), lambda name, event: heard.append((name, event)))
    workers.all(["softmax", "gla", "linear"], "train", 2)
    return heard


def test_all_run_and_report(run, plan, monkeypatch):
    heard = ended(run, plan, monkeypatch, "import sys, json; print(json.dumps({'stage': sys.argv[2]}))")
    assert sorted(name for name, event in heard if event.get("stage") == name) == ["gla", "linear", "softmax"]
    assert [event["ended"] for _, event in heard if "ended" in event] == [None] * 3


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by the system, most likely because memory"),
        ("import os; os.abort()", "ended with signal SIGABRT"),
        ("raise SystemError('deep inside')", "ended with status 1: .*SystemError: deep inside"),
    ],
)
def test_a_death_is_explained_and_costs_its_row_alone(run, plan, monkeypatch, code, why):
    code = f"import sys\nif sys.argv[2] == 'gla':\n    {code}"
    reasons = {name: event["ended"] for name, event in ended(run, plan, monkeypatch, code) if "ended" in event}
    assert reasons["softmax"] is reasons["linear"] is None
    assert re.search(why, reasons["gla"])
    rows = {row["name"]: row for row in collect(run, plan)["mechanisms"]}
    assert (rows["gla"]["status"], rows["softmax"]["status"]) == ("failed", "unfinished")
    assert rows["gla"]["reason"] == reasons["gla"]


@pytest.mark.usefixtures("interruptible")
def test_the_first_interruption_stops_the_rest(run, plan, monkeypatch):
    interruption = Interruption()
    code = """import os, signal, sys, time
if sys.argv[2] == "softmax":
    os.kill(os.getppid(), signal.SIGINT)
time.sleep(20)
sys.exit("nobody stopped this worker")"""
    with interruption.listening():
        heard = ended(run, plan, monkeypatch, code, interruption=interruption)
    assert interruption.requested
    assert all(event["ended"] is None for _, event in heard)
    assert "linear" not in {name for name, _ in heard}


@pytest.mark.usefixtures("interruptible")
def test_a_later_interruption_ends_at_once():
    interruption = Interruption()
    with interruption.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested
        os.kill(os.getpid(), signal.SIGTERM)  # at once: the same request, sent to the whole group
        interruption._second_from = 0.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_a_job_that_ignores_ctrl_c_goes_on_ignoring_it_and_stops_for_sigterm():
    """As after nohup, where whoever started the job meant it to live on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interruption = Interruption()
    with interruption.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert not interruption.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def raised(error):
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError("9 GB"), "out of memory: 9 GB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: DefaultCPUAllocator"),
        (LawError("leaks the future"), "leaks the future"),
        (KeyError("x\ny"), "KeyError: 'x\\ny' (test_processes.py, line"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_error_is_one_line(error, text):
    assert reason(raised(error)).startswith(text)


EVENTS = [
    ("softmax", {"stage": "laws"}),
    ("softmax", {"stage": "pilot-0", "fraction": 0.2, "seconds_left": 3.0, "score": None}),
    ("softmax", {"stage": "seed-0", "fraction": 0.5, "seconds_left": 1.0, "score": 2.5}),
    ("softmax", {"ended": None, "phase": "train"}),
    ("gla", {"ended": "leaks [the] future", "phase": "train"}),
    ("softmax", {"stage": "cost", "length": 256}),
    ("softmax", {"ended": None, "phase": "measure"}),
]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown(plan, is_terminal):
    file = io.StringIO()
    with Display(plan, Console(file=file, force_terminal=is_terminal, width=120)) as display:
        before = display.seconds_left()
        for name, event in EVENTS:
            display.event(name, event)
        assert display.seconds_left() < before
    shown = file.getvalue()
    assert "leaks [the] future" in shown
    assert ("left" in shown) == is_terminal
    assert ("seed-0, 2.500" in shown) == (not is_terminal)  # a terminal shows the last state only
    assert "done" in shown


def test_events_are_lines_of_json_and_not_too_many():
    read, write = os.pipe()
    reporter = Reporter(write)
    for i in range(100):
        reporter.progress(step=i)
    reporter.event(stage="end")
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read().splitlines()[0] == '{"step": 0}'
