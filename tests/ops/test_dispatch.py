"""Which implementation runs: argument before context before the best available, and the reasons against the others."""

from __future__ import annotations

import pytest
import torch

import attensor
from attensor.errors import BackendError
from attensor.ops._dispatch import OPERATORS, Operator


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
    reasons = r"example has no triton implementation.*torch: available.*Leave `backend` out"
    with pytest.raises(BackendError, match=reasons):
        operator.choose("triton", CPU)


def test_triton_needs_its_library_and_a_gpu(operator, monkeypatch):
    operator.implementations["triton"] = lambda: "kernel"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install "attensor[triton]"' in operator.why_not("triton", CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert "need a GPU, the tensors are on cpu" in operator.why_not("triton", CPU)
    assert operator.choose(None, CPU)() == "fast"
    assert operator.choose(None, torch.device("cuda"))() == "kernel"


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
