"""Processes end in every possible way, and each way becomes an outcome; what is asked to stop stops."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attensor.errors import LawError
from attensor.lab import Cell, Interruption, Outcome, Pool, Reporter, kept
from attensor.lab.reason import reason

from . import cells


def outcomes(
    function: Callable[..., Any],
    arguments: list[dict[str, Any]],
    *,
    logs: Path | None = None,
    interruption: Interruption | None = None,
    at_once: int = 2,
    kernels: str | None = None,
) -> list[tuple[Cell, Outcome]]:
    """How the calls ended."""
    log = [None if logs is None else logs / f"{i}.log" for i in range(len(arguments))]
    asked = [Cell.of(function, each, log=path) for each, path in zip(arguments, log, strict=True)]
    ended: list[tuple[Cell, Outcome]] = []
    pool = Pool(interruption or Interruption(), kernels=kernels)
    pool.run(asked, at_once=at_once, on_end=lambda cell, outcome: ended.append((cell, outcome)))
    return ended


DEATHS = {
    "kill": "killed by the system, most likely because memory",
    "abort": "ended with signal SIGABRT",
    "exit": r"ended the process by sys.exit\(deep inside\) \(cells.py, line",
}


@pytest.mark.slow
def test_a_death_is_explained_and_costs_its_cell_alone(tmp_path: Path) -> None:
    ways = {"first": None, **{how: how for how in DEATHS}, "last": None}
    named = [{"name": name, "how": how} for name, how in ways.items()]
    ended = {cell.arguments["name"]: outcome for cell, outcome in outcomes(cells.end, named, logs=tmp_path)}
    assert ended.keys() == ways.keys()
    for name, why in DEATHS.items():
        assert ended[name].result is None
        assert re.search(why, ended[name].reason or "")
    for place, name in ((0, "first"), (len(ways) - 1, "last")):
        assert (ended[name].result, ended[name].reason) == (name, None)
        assert (tmp_path / f"{place}.log").read_text() == f"{name} says so\n"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["descriptors", "thread, exit handler, child, fork"])
def test_nothing_that_a_cell_leaves_or_writes_holds_up_its_answer(what: str, tmp_path: Path) -> None:
    """Lines that look like answers, threads and children that go on: the answer counts, and the process is gone."""
    interruption = Interruption()
    started = time.monotonic()
    ((_, outcome),) = outcomes(cells.strange, [{"what": what}], logs=tmp_path, interruption=interruption)
    assert (outcome.result, outcome.reason) == (what, None)
    assert interruption.processes == []
    assert time.monotonic() - started < 25, "somebody waited for it"
    assert (tmp_path / "0.log").read_text() == "null\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("closed", "the code closed the descriptors of its process"),
        ("fork and die", "ended with status 3"),
        ("deaf", "did not end within 4 s"),
    ],
)
def test_a_process_that_cannot_answer_is_a_failure(what: str, why: str, tmp_path: Path) -> None:
    ended: list[Outcome] = []
    pool = Pool(Interruption(), limit_seconds=4.0 if what == "deaf" else 60.0)
    cell = Cell.of(cells.strange, {"what": what}, log=tmp_path / "log")
    pool.run([cell], at_once=1, on_end=lambda cell, outcome: ended.append(outcome))
    assert why in str(ended[0].reason)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_a_process_that_does_not_listen_is_ended_by_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attensor.lab.process._LAST_SECONDS", 1.0)
    interruption, log = Interruption(), tmp_path / "0.log"

    def ask_it_to_stop() -> None:
        while not (log.exists() and "deaf" in log.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask_it_to_stop, daemon=True).start()
    with interruption.listening():
        ((_, outcome),) = outcomes(cells.strange, [{"what": "deaf"}], logs=tmp_path, interruption=interruption)
    assert outcome.is_stopped
    assert outcome.reason is None


# what could be taken for an answer, and, right before the answers, what leaves a line open
BEFORE = [
    "print('hello')",
    "sys.stdout.buffer.write(bytes([255, 254, 10]))",
    "print('5')",
    "print('null')",
    "print('{\"event\": {}}')",
    "print('{\"result\": 1}')",
    "sys.stdout.write('hello')",
]


def test_what_is_printed_before_the_process_is_ours_is_for_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line for code in BEFORE for line in (code, "sys.stdout.flush()")]
    (tmp_path / "sitecustomize.py").write_text("\n    ".join(["import sys\nif '-P' in sys.orig_argv:", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    ((_, outcome),) = outcomes(cells.square, [{"value": 7}], logs=tmp_path)
    assert outcome.result["square"] == 49
    expected = b'hello\n\xff\xfe\n5\nnull\n{"event": {}}\n{"result": 1}\nhello'
    assert (tmp_path / "0.log").read_bytes() == expected


@pytest.mark.slow
def test_events_are_heard_in_their_order() -> None:
    heard: list[int] = []
    Pool(Interruption()).run(
        [Cell.of(cells.say, {"count": 500})],
        at_once=1,
        on_end=lambda cell, outcome: heard.append(-outcome.result),
        on_event=lambda cell, event: heard.append(event["number"]),
    )
    assert heard == [*range(500), -500]


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_the_first_interruption_stops_the_rest() -> None:
    interruption = Interruption()
    whom = [{"whom": os.getpid()}, {"whom": None}]
    with interruption.listening():
        ended = outcomes(cells.interrupt, whom, interruption=interruption, at_once=1)
    assert interruption.requested
    assert [(cell.arguments["whom"], outcome.is_stopped) for cell, outcome in ended] == [(os.getpid(), True)]
    assert interruption.processes == []


@pytest.mark.usefixtures("interruptible")
def test_a_later_interruption_ends_at_once() -> None:
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
def test_a_job_that_ignores_ctrl_c_goes_on_ignoring_it_and_stops_for_sigterm() -> None:
    """As after nohup, where whoever started the job meant it to live on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interruption = Interruption()
    with interruption.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert not interruption.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.slow
def test_an_error_here_ends_the_processes() -> None:
    interruption = Interruption()

    def on_end(cell: Cell, outcome: Outcome) -> None:
        raise OSError("the disk is full")

    slow = [Cell.of(cells.count_up_to, {"limit": limit}) for limit in (3, 1)]
    with pytest.raises(OSError, match="the disk is full"):
        Pool(interruption).run(slow, at_once=2, on_end=on_end)
    assert interruption.processes == []


@pytest.mark.slow
@pytest.mark.parametrize(("form", "found"), [("torch", "torch"), (None, None)])
def test_the_form_of_the_kernels_is_the_pools(form: str | None, found: str | None) -> None:
    ((_, outcome),) = outcomes(cells.kernels, [{}], kernels=form)
    assert outcome == Outcome(found, seconds=outcome.seconds)


@pytest.mark.slow
def test_kernels_that_are_missing_are_a_failure_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTENSOR_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-compiler-of-this-name")
    ((_, outcome),) = outcomes(cells.kernels, [{}], kernels="cpp")
    assert "attensor doctor --build" in str(outcome.reason)


def test_a_function_that_no_other_process_can_import_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a function of a module that can be imported"):
        Cell.of(lambda: None, {})


def raised(error: Exception) -> Exception:
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
        (KeyError("x\ny"), "KeyError: 'x\\ny' (test_pool.py, line"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_error_is_one_line(error: Exception, text: str) -> None:
    assert reason(raised(error)).startswith(text)


def test_events_are_lines_of_json_and_not_too_many() -> None:
    read, write = os.pipe()
    reporter = Reporter(write)
    for i in range(100):
        reporter.progress(step=i)
    reporter.event(stage="end")
    os.close(write)
    with os.fdopen(read) as pipe:
        lines = [line for line in pipe.read().splitlines() if line]
    assert (lines[0], lines[-1]) == ('{"event": {"step": 0}}', '{"event": {"stage": "end"}}')
    assert len(lines) < 50
    Reporter.current().event(stage="nobody listens here")


def test_what_is_kept_is_made_once(tmp_path: Path) -> None:
    made = [kept(tmp_path / "a.json", lambda value=value: value) for value in (3, 4)]
    assert made == [3, 3]
