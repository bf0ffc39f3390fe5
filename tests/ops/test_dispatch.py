"""Which implementation runs: argument before context before the best available, and the reasons against the others."""

from __future__ import annotations

import pytest
import torch

import attensor
from attensor.errors import BackendError
from attensor.ops import _dispatch
from attensor.ops._dispatch import OPERATORS, Operator
from attensor.ops.cpp import build


@pytest.fixture
def operator():
    yield Operator("example", {"reference": lambda: "definition", "torch": lambda: "fast"})
    del OPERATORS["example"]


CPU = torch.device("cpu")


def test_the_best_available_runs_unless_the_context_or_the_argument_says_otherwise(operator):
    assert operator.choose(None, CPU)() == "fast"
    with attensor.backend("reference"):
        assert operator.choose(None, CPU)() == "definition"
        assert operator.choose("torch", CPU)() == "fast"
        with attensor.backend("torch"):
            assert operator.choose(None, CPU)() == "fast"
        assert operator.choose(None, CPU)() == "definition"
    assert operator.choose(None, CPU)() == "fast"


def test_the_context_ends_with_an_exception(operator):
    with pytest.raises(KeyError), attensor.backend("reference"):
        raise KeyError
    assert operator.choose(None, CPU)() == "fast"


def test_a_missing_back_end_says_for_each_candidate_why_not(operator):
    reasons = "; ".join(f"{name}: example has no {name} implementation" for name in ("triton", "cpp"))
    reasons += "; torch: available.*Leave `backend` out"
    with pytest.raises(BackendError, match=reasons):
        operator.choose("triton", CPU)


META = torch.device("meta")
GPU = torch.device("cuda")


def test_triton_needs_its_library_and_a_gpu(operator, monkeypatch):
    operator.implementations["triton"] = lambda: "kernel"
    monkeypatch.setattr(_dispatch, "_IS_INTERPRETED", False)
    monkeypatch.setattr(_dispatch, "_HAS_TRITON", False)
    for device in (CPU, META, GPU):
        assert 'pip install "attensor[triton]"' in operator.why_not("triton", device)
    assert operator.choose(None, GPU)() == "fast"
    monkeypatch.setattr(_dispatch, "_HAS_TRITON", True)
    assert "need a GPU, the tensors are on cpu; set TRITON_INTERPRET=1" in operator.why_not("triton", CPU)
    assert operator.choose(None, CPU)() == "fast"
    assert operator.choose(None, GPU)() == "kernel"
    assert operator.choose("triton", META)() == "kernel"
    assert operator.choose(None, META)() == "fast"


def test_the_interpreter_runs_kernels_on_a_cpu_only_when_asked_for(operator, monkeypatch):
    operator.implementations["triton"] = lambda: "kernel"
    monkeypatch.setattr(_dispatch, "_HAS_TRITON", True)
    monkeypatch.setattr(_dispatch, "_IS_INTERPRETED", True)
    assert operator.choose("triton", CPU)() == "kernel"
    with attensor.backend("triton"):
        assert operator.choose(None, CPU)() == "kernel"
    assert operator.choose(None, CPU)() == "fast"
    del operator.implementations["torch"]
    assert operator.choose(None, CPU)() == "definition"
    assert "need a GPU, the tensors are on xpu" in operator.why_not("triton", torch.device("xpu"))


def test_cpp_needs_a_cpu_and_its_library(operator, monkeypatch):
    operator.implementations["cpp"] = lambda: "compiled"
    monkeypatch.setattr(build, "why_not", lambda: "no C++ compiler")
    assert operator.why_not("cpp", CPU) == "no C++ compiler"
    assert operator.choose(None, CPU)() == "fast"
    with pytest.raises(BackendError, match=r"'cpp' cannot run on cpu .*; cpp: no C.. compiler; torch: available"):
        operator.choose("cpp", CPU)
    monkeypatch.setattr(build, "why_not", lambda: None)
    assert operator.choose(None, CPU)() == "compiled"
    with attensor.backend("torch"):
        assert operator.choose(None, CPU)() == "fast"
        assert operator.choose("cpp", CPU)() == "compiled"
    for device in (META, GPU):
        assert operator.why_not("cpp", device) == f"cpp kernels run on a CPU, the tensors are on {device}"
        assert operator.choose(None, device)() == "fast"


def test_an_operator_that_cannot_run_at_all_says_so(operator):
    operator.implementations.clear()
    with pytest.raises(BackendError, match="no back-end can run on cpu"):
        operator.choose(None, CPU)


def test_unknown_names_are_refused(operator):
    with pytest.raises(ValueError, match="unknown back-end 'cuda'"):
        operator.choose("cuda", CPU)
    with pytest.raises(ValueError, match="choose one of"), attensor.backend("cuda"):
        pass


def test_a_compiled_function_follows_the_context():
    seen = []
    example = Operator("example", {"reference": lambda x: x + 1, "torch": lambda x: x + 2})

    def call(x):
        return example.choose(None, x.device)(x)

    compiled = torch.compile(call, fullgraph=True, backend="eager")
    seen.append(compiled(torch.zeros(())).item())
    with attensor.backend("reference"):
        seen.append(compiled(torch.zeros(())).item())
    del OPERATORS["example"]
    assert seen == [2, 1]
