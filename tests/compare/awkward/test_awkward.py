"""A comparison in awkward company: it ends in time, says one line that helps, and leaves nothing half written."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.compare.awkward.case import QUICK, TEXT, Case, mixer

OWN = "my.py:Mean"
EXECUTED = "open('EXECUTED', 'w')"
SHADOWS = dict.fromkeys(
    [f"{name}.py" for name in ["random", "queue", "html", "secrets", "jinja2", "ctypes", "numpy", "email"]], EXECUTED
)
ESCAPES = r"raise RuntimeError('\x1b]0;owned\x07\x1b[31mred' + 9999 * 'x')"

# Ctrl-C at the moment at which this module is asked for
INTERRUPTS = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r} and {after!r} in sys.modules and "attensor" in sys.modules:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
if "attensor" in sys.orig_argv:
    sys.meta_path.insert(0, Finder())
"""


def own(status: int = 0, row: str = "ok", **parts: str) -> Case:
    """A run of the user's file."""
    return Case(OWN, {"my.py": mixer(**parts)}, status=status, rows={"Mean": row})


def edits(how: str) -> Case:
    """The file of the data is changed in the middle of the training."""
    code = f"if x.shape[1] == 16: calls.append(1)\n        if len(calls) == 20: p = 'text.txt'; {how}"
    file = mixer(top="import os\ncalls = []", forward=code)
    return Case(OWN, {"my.py": file}, 1, r"text\.txt' changed while in use: it .* Start again", {"Mean": "failed"})


def start(name: str, after: str) -> Case:
    """Ctrl-C during the start."""
    files = {"site/sitecustomize.py": INTERRUPTS.format(name=name, after=after)}
    return Case(files=files, status=130, environment={"PYTHONPATH": "site"}, limit=60.0)


def waits(folder: Path) -> None:
    """Two layers that sleep 5 ms each: no more steps than fit into the budget of 20 s, the other one's included."""
    (schedule,) = folder.rglob("pace.json")
    steps = json.loads(schedule.read_text())["steps"]
    assert steps >= 50
    assert 2 * 0.005 * 3 * steps <= 20.0
    for name in ("Mean", "linear"):
        (seed,) = folder.rglob(f"{name}/seed-2.json")
        assert json.loads(seed.read_text())["steps"] == steps
    (pace,) = folder.rglob("Mean/calibration.json")
    assert json.loads(pace.read_text())["seconds_per_step"] >= 2 * 0.005


def says_what_is_enough(folder: Path) -> None:
    """Nothing is trained, and what has been measured is kept for the next attempt."""
    (kept,) = folder.rglob("calibration.json")
    assert not (kept.parents[1] / "pace.json").exists()
    assert not list(folder.rglob("seed-*.safetensors"))


def counts_text_alone(folder: Path) -> None:
    """What the run itself has written is no data, and what the test writes is hidden."""
    (plan,) = folder.rglob("plan.json")
    facts = json.loads(plan.read_text())["facts"]
    sides = ("train", "selection", "test")
    assert max(facts[f"{side}_files"] for side in sides) <= 1
    assert sum(facts[f"{side}_bytes"] for side in sides) <= len(TEXT)


FAST = {
    "Ctrl-C while torch is imported": start("numpy", "torch"),
}
COMMON = {
    # what is printed, changed and lies about does not matter, and a terminal need know no other letters
    "company": Case(
        OWN,
        {**SHADOWS, "my.py": mixer(top="print('null', flush=True); torch.set_default_dtype(torch.float64)")},
        rows={"Mean": "ok"},
        data="caf\u4e2d.txt",
        environment={"PYTHONIOENCODING": "ascii"},
    ),
    "escapes": Case(
        OWN,
        {"my.py": mixer(forward=ESCAPES)},
        1,
        r"No mechanism could be trained; their logs are in runs/",
        {"Mean": "failed"},
    ),
}
TERMINALS = {
    "ascii": Case(environment={"PYTHONIOENCODING": "ascii"}, rows={"linear": "ok"}),
    "latin-1": Case(environment={"PYTHONIOENCODING": "latin-1"}, rows={"linear": "ok"}, data="caf\u4e2d.txt"),
    "C": Case(environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, rows={"linear": "ok"}),
    "narrow": Case(environment={"COLUMNS": "10"}, rows={"linear": "ok"}),
    "full": Case(stdout="/dev/full", status=2, says="the standard output cannot be written: No space left on device"),
}
IMPORTS = {
    "exit": Case(OWN, {"my.py": "import sys; sys.exit(0)"}, 2, r"my\.py: cannot be imported: it ends the process"),
    "_exit": Case(OWN, {"my.py": "import os; os._exit(5)"}, 2, r"my\.py: cannot be imported: .* status 5"),
    "escapes": Case(OWN, {"my.py": ESCAPES}, 2, r"my\.py: cannot be imported: RuntimeError: \\x1b\]0;owned"),
    "interrupt": Case(OWN, {"my.py": "raise KeyboardInterrupt"}, 2, r"my\.py: cannot be imported: KeyboardInterrupt"),
    "chdir": own(top="import os; os.chdir('/')"),
    "thread": own(top="import threading, time; threading.Thread(target=time.sleep, args=[900]).start()"),
    "closes": own(top="import sys; sys.stdout.close()"),
    "exit handler": own(top="import atexit; atexit.register(lambda: 1 / 0)"),
    "device": own(top="torch.set_default_device('meta')"),
    "gradients": own(top="torch.set_grad_enabled(False)"),
}
FOLDERS = {
    "run inside": Case(data=".", files={"a/1.txt": TEXT, "b/2.txt": TEXT[::-1]}, rows={"linear": "ok"}),
    "out is data": Case(
        data=".",
        files={"a/1.txt": TEXT},
        options=(*QUICK, "--out", "."),
        rows={"linear": "ok"},
        check=counts_text_alone,
    ),
}
CALLS = {
    "exit": own(1, "failed", forward="raise SystemExit(0)"),
    "_exit": own(1, "failed", forward="import os; os._exit(0)"),
    "crash": own(1, "failed", forward="import ctypes; ctypes.string_at(0)"),
    "chdir": own(forward="import os; os.chdir('/')"),
    "closes": own(1, "failed", forward="import os; os.closerange(3, 4096)"),
    "dtype": own(1, "failed", forward="torch.set_default_dtype(torch.float64)"),
    "constructor": own(1, "failed", constructor="raise SystemExit(3)"),
    "one of two": Case(f"linear,{OWN}", {"my.py": mixer(forward="1 / 0")}, rows={"linear": "ok", "Mean": "failed"}),
    "first rate diverges": Case(options=(*QUICK[:3], "1e300", *QUICK[3:]), rows={"linear": "ok"}),
    "waits": Case(
        f"{OWN},linear",
        {"my.py": mixer(forward="import time; time.sleep(0.005 if x.shape[1] == 16 else 0)")},
        options=("--budget", "20s", "--jobs", "1", *QUICK[2:]),
        rows={"Mean": "ok", "linear": "ok"},
        check=waits,
    ),
    "too small a budget": Case(
        options=("--budget", "0.01s", *QUICK[2:]),
        status=2,
        says=r"--budget 0.01s: is enough for 0 steps a run, .* attensor compare --resume runs/\S+ --budget \d+s",
        check=says_what_is_enough,
    ),
    "cut short": edits("os.truncate(p, 100)"),
    "emptied": edits("os.truncate(p, 0)"),
    "written to": edits("open(p, 'r+').write(20000 * 'Z')"),
}
SIGNALS = {
    "imports tyro": start("tyro", "sys"),
    "imports torch": start("torch", "sys"),
    "once": Case(
        wait_for="laws",
        signals=(signal.SIGINT,),
        status=130,
        says=r"No ranking: .*Continue with: attensor compare --resume runs/\S+ .*Interrupted\.",
        rows={"linear": "unfinished"},
    ),
    "term": Case(
        wait_for="laws", signals=(signal.SIGTERM,), status=130, says="Continue with", rows={"linear": "unfinished"}
    ),
    "hang up": Case(wait_for="laws", signals=(signal.SIGHUP,), status=130, rows={"linear": "unfinished"}),
    "twice": Case(wait_for="laws", signals=(signal.SIGINT, signal.SIGINT), status=130),
    "at the end": Case(wait_for="No ranking", signals=(signal.SIGINT, signal.SIGINT), says="Results:"),
    "hangs": Case(
        OWN,
        {"my.py": mixer(forward="import time; time.sleep(900)")},
        wait_for="laws",
        signals=(signal.SIGTERM,),
        status=130,
        rows={"Mean": "unfinished"},
    ),
    "hangs at import": Case(
        OWN,
        {"my.py": "import time; open('started', 'w').close(); time.sleep(900)"},
        status=130,
        wait_for="started",
        signals=(signal.SIGTERM,),
    ),
}
SLOW = {
    "common": COMMON,
    "terminals": TERMINALS,
    "imports": IMPORTS,
    "folders": FOLDERS,
    "calls": CALLS,
    "signals": SIGNALS,
}


@pytest.mark.parametrize("case", FAST.values(), ids=FAST)
@pytest.mark.usefixtures("interruptible")
def test_the_common_kinds(case: Case, tmp_path: Path) -> None:
    case.run(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{kind}-{name}") for kind, cases in SLOW.items() for name, case in cases.items()]
)
@pytest.mark.usefixtures("interruptible")
def test_all_kinds(case: Case, tmp_path: Path) -> None:
    case.run(tmp_path)
