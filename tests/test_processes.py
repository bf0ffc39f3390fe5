"""Processes of ours import what this one can, and nothing of the folder somebody happens to be in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import attensor
from attensor.processes import python_command, without_current_folder

SOURCES = str(Path(attensor.__file__).parents[1])


def test_the_current_folder_is_left_out_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = ["", ".", str(tmp_path), str(tmp_path / "link"), f"{tmp_path}/"]
    assert without_current_folder(["/first", *names, "/last"]) == ["/first", "/last"]


def test_it_stays_where_attensor_lies_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SOURCES)
    assert without_current_folder([SOURCES, "/last"]) == [SOURCES, "/last"]


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_child_finds_it_last_or_not_at_all(is_wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    for name in ("queue", "own"):
        (tmp_path / f"{name}.py").write_text("print('mine')")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "program.py").write_text(
        "import queue, importlib\nqueue.Queue\nimportlib.import_module('own')"
    )
    command, environment = python_command("program", with_current_folder=is_wanted)
    environment["PYTHONPATH"] += f"{os.pathsep}{tmp_path / 'below'}"
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == ((0, "mine\n") if is_wanted else (1, ""))


MODULES = ["random", "queue", "html", "json", "typing", "signal", "enum", "logging", "rich", "tyro", "secrets"]


@pytest.mark.parametrize("start", ["-m", "empty entry"])
def test_the_command_takes_no_module_of_the_current_folder(start: str, tmp_path: Path) -> None:
    """But for those that Python itself imports before it comes to us, such as `types`."""
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text("open('EXECUTED', 'w')")
    # not what measures coverage, which starts with the interpreter and imports modules before we can
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environment["PYTHONPATH"] = SOURCES + (os.pathsep if start != "-m" else "")
    code = ["-m", "attensor"] if start == "-m" else ["-P", "-c", "from attensor.__main__ import main; main()"]
    done = subprocess.run(
        [sys.executable, *code, "list"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "EXECUTED").exists()
