"""The doctor tells the truth about back-ends and extras."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from attensor import doctor
from attensor.ops import _operator
from attensor.ops._native import build


def test_each_operator_takes_what_the_operator_would_take() -> None:
    device = torch.device("cpu")
    rows = doctor.choices(device)
    assert {name for name, _, _ in rows} >= {"linear_attention", "softmax_attention", "neighborhood_attention"}
    for name, taken, because in rows:
        operator = _operator.OPERATORS[name]
        assert taken == operator.best(device)
        for other in set(_operator.BACKENDS) - {taken}:
            assert f"{other}: " in because


def test_a_missing_extra_comes_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    present = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda package: None if package == "jinja2" else present(package))
    states = dict(doctor.extras())
    assert states["report"] == 'missing jinja2: pip install "attensor[report]"'
    assert states["vision"].startswith("installed: ")


def test_all_facts_are_printed() -> None:
    console = Console(width=200, record=True, quiet=False, file=None)
    with console.capture() as captured:
        doctor.run(console)
    shown = captured.get()
    named = ("Python", "C++ compiler", "C++ kernels", "Triton", "CUDA", "cores", "threads", "linear_attention")
    for fact in (*named, torch.__version__):
        assert fact in shown


@pytest.mark.parametrize(
    ("available", "built_for", "expected"),
    [(False, None, "no: this is a CPU build of torch"), (False, "13.0", "no: torch is built for CUDA 13.0")],
)
def test_cuda_says_why_not(
    available: bool, built_for: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    assert dict(doctor.facts())["CUDA"].startswith(expected)


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "compiler", lambda: None)
    assert "none: torch.compile needs one" in dict(doctor.facts())["C++ compiler"]


def test_the_compiler_is_the_one_that_builds_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{sys.executable} -I")
    # not `facts`, which would build with it, and the process would remember that it failed
    assert doctor._compiler() == f"Python {platform.python_version()}"


def test_a_long_path_is_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/cache/{'x' * 100}.so"
    monkeypatch.setattr(doctor, "_kernels", lambda: path)
    console = Console(width=80)
    with console.capture() as captured:
        doctor.run(console)
    assert path in re.sub(r"[\s│]", "", captured.get())


def test_the_kernels_are_where_they_lie_or_why_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = Path(dict(doctor.facts())["C++ kernels"])
    if doctor.compiler() is None:
        pytest.skip("there is no C++ compiler")
    assert path.is_file()
    monkeypatch.setattr(build, "why_not", lambda demanded: "not built yet")
    assert dict(doctor.facts())["C++ kernels"] == "none: not built yet"


def test_doctor_builds_when_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr(build, "build", lambda: built.append(1))
    for wanted in (False, True):
        doctor.run(Console(quiet=True), build=wanted)
    assert built == [1]
