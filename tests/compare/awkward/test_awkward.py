"""A comparison in awkward company: it ends in time, says one line that helps, and leaves nothing half written."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.compare.awkward.case import QUICK, SMALL, TEXT, Case, mixer

OWN = "my.py:Mean"
COUNTED = QUICK[:-1]  # with an n-gram under the models, which a further process counts
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
# whatever a file does when it is imported, and prints, shadows and lies about, each other file is none the worse for it
AT_IMPORT = {
    "Changes": "import os; os.chdir('/')",
    "Threads": "import threading, time; threading.Thread(target=time.sleep, args=[900]).start()",
    "Closes": "import sys; sys.stdout.close()",
    "Leaves": "import atexit; atexit.register(lambda: 1 / 0)",
    "Places": "torch.set_default_device('meta'); torch.set_grad_enabled(False)",
    "Prints": "print('null', flush=True); torch.set_default_dtype(torch.float64)",
}
AT_CALLS = {
    "Exits": "raise SystemExit(0)",
    "Ends": "import os; os._exit(0)",
    "Crashes": "import ctypes; ctypes.string_at(0)",
    "Closes": "import os; os.closerange(3, 4096)",
    "Widens": "torch.set_default_dtype(torch.float64)",
    "Fails": "1 / 0",
}


def together(files: Mapping[str, str], rows: Mapping[str, str], **options: Any) -> Case:
    """One run of several files, each named as the class in it."""
    names = ",".join(f"{name}.py:{name}" for name in files)
    content = {f"{name}.py": text for name, text in files.items()}
    return Case(names, content | SHADOWS, rows=rows, limit=300.0, **options)


COMPANY = {
    "at import": together(
        {name: mixer(name, top=top) for name, top in AT_IMPORT.items()},
        dict.fromkeys(AT_IMPORT, "ok"),
        options=COUNTED,
        data="caf\u4e2d.txt",
        environment={"PYTHONIOENCODING": "ascii"},
    ),
    "at calls": together(
        {name: mixer(name, forward=forward) for name, forward in AT_CALLS.items()}
        | {"Builds": mixer("Builds", constructor="raise SystemExit(3)")}
        | {"Moves": mixer("Moves", forward="import os; os.chdir('/')")},
        dict.fromkeys([*AT_CALLS, "Builds"], "failed") | {"Moves": "ok"},
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
    # a terminal need know no other letters, and be no wider than a finger
    "letters": Case(
        environment={"COLUMNS": "10", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        rows={"linear": "ok"},
        data="caf\u4e2d.txt",
        shown_again=({"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii", "COLUMNS": "10"}),
    ),
    "full": Case(stdout="/dev/full", status=2, says="the standard output cannot be written: No space left on device"),
}
IMPORTS = {
    "exit": Case(OWN, {"my.py": "import sys; sys.exit(0)"}, 2, r"my\.py: cannot be imported: it ends the process"),
    "_exit": Case(OWN, {"my.py": "import os; os._exit(5)"}, 2, r"my\.py: cannot be imported: .* status 5"),
    "escapes": Case(OWN, {"my.py": ESCAPES}, 2, r"my\.py: cannot be imported: RuntimeError: \\x1b\]0;owned"),
    "interrupt": Case(OWN, {"my.py": "raise KeyboardInterrupt"}, 2, r"my\.py: cannot be imported: KeyboardInterrupt"),
}
FOLDERS = {
    "run inside": Case(
        data=".", files={"a/1.txt": TEXT, "b/2.txt": TEXT[::-1]}, options=COUNTED, rows={"linear": "ok"}
    ),
    "out is data": Case(
        data=".",
        files={"a/1.txt": TEXT},
        options=(*QUICK, "--out", "."),
        rows={"linear": "ok"},
        check=counts_text_alone,
    ),
}
BUDGETS = {
    "first rate diverges": Case(
        options=("--steps", "1", "--learning-rates", "1e300,0.01", *SMALL[2:]), rows={"linear": "ok"}
    ),
    "waits": Case(
        f"{OWN},linear",
        {"my.py": mixer(forward="import time; time.sleep(0.005 if x.shape[1] == 16 else 0)")},
        options=("--budget", "20s", "--jobs", "1", *SMALL),
        rows={"Mean": "ok", "linear": "ok"},
        check=waits,
    ),
    "too small a budget": Case(
        options=("--budget", "0.01s", *SMALL),
        status=2,
        says=r"--budget 0.01s: is enough for 0 steps a run, .* attensor compare --resume runs/\S+ --budget \d+s",
        check=says_what_is_enough,
    ),
}
CHANGES = {
    "cut short": edits("os.truncate(p, 100)"),
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
    "company": COMPANY,
    "terminals": TERMINALS,
    "imports": IMPORTS,
    "folders": FOLDERS,
    "budgets": BUDGETS,
    "changes": CHANGES,
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
