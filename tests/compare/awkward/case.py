"""One awkward situation for `attensor compare`, and the laws that hold in each."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import attensor

SOURCES = str(Path(attensor.__file__).parents[1])
SMALL = ("--learning-rates", "0.01", "--length", "16", "--batch-size", "2", "--max-length", "256", "--no-counts")
QUICK = ("--steps", "1", *SMALL)
TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}, and so on.\n" for i in range(600))

MIXER = """
import torch
from torch import nn
{top}
class {name}(nn.Module):
    def __init__(self, hidden_size, num_heads):
        super().__init__()
        {constructor}
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x):
        {forward}
        return self.proj(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])
"""


def mixer(name: str = "Mean", *, top: str = "", constructor: str = "pass", forward: str = "pass") -> str:
    """A user's file with a lawful mixer and something awkward in it."""
    return MIXER.format(name=name, top=top, constructor=constructor, forward=forward)


@dataclass(frozen=True)
class Case:
    """A run and its end.

    Attributes:
        mechanisms: of the comparison.
        files: relative name -> content; one that is executed though it must not be writes a file EXECUTED.
        status: the exit code.
        says: a pattern in what is printed.
        rows: name -> status in results.json; None where the run must not have started.
        options: of `attensor compare`.
        environment: more variables.
        data: the name of the text.
        stdout: where the standard output goes; None: to the test.
        wait_for: text on the standard output, or a file, after which `signals` are sent.
        limit: seconds.
        check: a further look at the folder.
        shown_again: environments in which the finished run is asked for once more and ends as before.
    """

    mechanisms: str = "linear"
    files: Mapping[str, str] = field(default_factory=dict)
    status: int = 0
    says: str = ""
    rows: Mapping[str, str] | None = None
    options: tuple[str, ...] = QUICK
    environment: Mapping[str, str] = field(default_factory=dict)
    data: str = "text.txt"
    stdout: str | None = None
    wait_for: str = ""
    signals: tuple[signal.Signals, ...] = ()
    limit: float = 120.0
    check: Callable[[Path], None] | None = None
    shown_again: tuple[Mapping[str, str], ...] = ()

    def run(self, folder: Path) -> None:
        """Run it in the folder and look at all laws."""
        for name, content in ({} if self.data == "." else {self.data: TEXT}).items() | self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8")
        command = ("--data", self.data, "--mechanisms", self.mechanisms, *self.options)
        self._look_at(*self._ended(folder, command, self.environment))
        self._look_at_files(folder)
        for environment in self.shown_again:
            (run,) = (folder / "runs").iterdir()
            self._look_at(*self._ended(folder, ("--resume", str(run)), environment))
        if self.check is not None:
            self.check(folder)

    def _look_at(self, status: int, out: str, err: str) -> None:
        """The laws of what is printed."""
        said = " ".join((out + err).split())
        assert status == self.status, said[-2000:]
        assert re.search(self.says, said), said[-2000:]
        assert "Traceback" not in said
        assert "Exception" not in said
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", out + err), "something moves the cursor"
        if status == 2:
            assert re.fullmatch(r"attensor[^\n]*\n", err), err

    def _look_at_files(self, folder: Path) -> None:
        assert not list(folder.rglob("EXECUTED"))
        assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
        results, reports, plans = (sorted(folder.rglob(name)) for name in ("results.json", "report.html", "plan.json"))
        assert len(plans) == len(list(folder.rglob(".attensor-run")))
        if self.rows is None:
            return
        assert len(results) == len(reports) == 1
        found = {row["name"]: row["status"] for row in json.loads(results[0].read_text())["mechanisms"]}
        assert found == self.rows

    def _ended(self, folder: Path, options: tuple[str, ...], environment: Mapping[str, str]) -> tuple[int, str, str]:
        """The exit code and what was printed; nothing of the session lives on."""
        path = {"PYTHONPATH": os.pathsep.join(filter(None, [SOURCES, environment.get("PYTHONPATH")]))}
        out, err = folder / ".out", folder / ".err"
        with open(self.stdout or out, "wb") as to, err.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "attensor", "compare", *options],
                cwd=folder,
                env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment, **path},
                stdin=subprocess.DEVNULL,
                stdout=to,
                stderr=errors,
                start_new_session=True,
            )
        if self.signals:
            threading.Thread(target=self._signal, args=(process, out), daemon=True).start()
        try:
            status = process.wait(self.limit)
        finally:
            is_alone = _is_empty_soon(process.pid)
            if process.poll() is None:
                process.kill()
        assert is_alone, "it has left processes behind"
        shown = out.read_text(errors="replace") if out.exists() else ""
        return status, shown, err.read_text(errors="replace")

    def _signal(self, process: subprocess.Popen[bytes], out: Path) -> None:
        def is_time():
            return self.wait_for in out.read_text(errors="replace") or (out.parent / self.wait_for).exists()

        while not is_time() and process.poll() is None:
            time.sleep(0.05)
        for number in self.signals:
            process.send_signal(number)
            time.sleep(1.0)  # soon after one another they are one request


def _is_empty_soon(session: int) -> bool:
    """Whether the process group has ended; if not, it is ended."""
    for _ in range(40):
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    os.killpg(session, signal.SIGKILL)
    return False
