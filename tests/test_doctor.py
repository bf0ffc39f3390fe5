"""The doctor tells the truth about back-ends and extras."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from attensor import doctor
from attensor.ops import _dispatch


def test_each_operator_takes_what_dispatch_would_take() -> None:
    device = torch.device("cpu")
    rows = doctor.choices(device)
    assert {name for name, _, _ in rows} >= {"linear_attention", "softmax_attention", "neighborhood_attention"}
    for name, taken, because in rows:
        operator = _dispatch.OPERATORS[name]
        assert operator.implementations[taken] is operator.choose(None, device)
        for other in set(_dispatch.BACKENDS) - {taken}:
            assert f"{other}: " in because


def test_a_missing_extra_comes_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    present = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda package: None if package == "plotly" else present(package))
    states = dict(doctor.extras())
    assert states["report"] == 'missing plotly: pip install "attensor[report]"'
    assert states["vision"].startswith("installed: ")


def test_all_facts_are_printed() -> None:
    console = Console(width=200, record=True, quiet=False, file=None)
    with console.capture() as captured:
        doctor.run(console)
    shown = captured.get()
    for fact in ("Python", torch.__version__, "C++ compiler", "Triton", "CUDA", "cores", "threads", "linear_attention"):
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
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert "none: torch.compile needs one" in dict(doctor.facts())["C++ compiler"]
