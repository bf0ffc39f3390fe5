"""Which implementation runs: a demand or the reason against it, the thread's preference where it can, else the best."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import attensor
from attensor.errors import BackendError
from attensor.ops import _operator
from attensor.ops._native import build
from attensor.ops._operator import OPERATORS, Implementation, Operator, placement

CPU = torch.device("cpu")
META = torch.device("meta")
GPU = torch.device("cuda")


@dataclass(frozen=True)
class Problem:
    """A query, and whether the fast form refuses it."""

    q: Tensor
    is_hard: bool = False


def hard(problem: Problem) -> str | None:
    return "hard problems are left to the definition" if problem.is_hard else None


def form(number: int, supports=lambda problem: None):
    return Implementation(lambda problem: problem.q + number, supports)


@pytest.fixture
def operator():
    yield Operator("example", {"reference": form(1), "torch": form(2, hard)})
    del OPERATORS["example"]


ZERO = Problem(torch.zeros(()))
HARD = Problem(torch.zeros(()), is_hard=True)


def test_the_best_available_runs_unless_the_argument_or_the_context_says_otherwise(operator):
    assert operator(ZERO) == 2
    with attensor.backend("reference"):
        assert operator(ZERO) == 1
        assert operator(ZERO, "torch") == 2
        with attensor.backend("torch"):
            assert operator(ZERO) == 2
        assert operator(ZERO) == 1
    assert operator(ZERO) == 2


def test_the_problem_is_asked_a_demand_refused_and_a_preference_given_up(operator):
    assert operator(HARD) == 1
    with attensor.backend("torch"):
        assert operator(HARD) == 1
        assert operator(ZERO) == 2
    with pytest.raises(BackendError, match=r"'torch' cannot run on cpu.*torch: hard problems are left.*reference: av"):
        operator(HARD, "torch")


def test_a_preference_that_cannot_be_met_leaves_the_one_around_it(operator):
    with attensor.backend("reference"), attensor.backend("cpp"):
        assert operator(ZERO) == 1
    with attensor.backend("cpp"):
        assert operator(ZERO) == 2


def test_the_context_ends_with_an_exception(operator):
    with pytest.raises(KeyError), attensor.backend("reference"):
        raise KeyError
    assert operator(ZERO) == 2


def test_the_context_is_the_thread_s_own(operator):
    seen = []
    with attensor.backend("reference"):
        other = threading.Thread(target=lambda: seen.append(operator(ZERO).item()))
        other.start()
        other.join()
        assert operator(ZERO) == 1
    assert seen == [2]


def test_a_missing_back_end_says_for_each_candidate_why_not(operator):
    reasons = "; ".join(f"{name}: example has no {name} implementation" for name in ("triton", "cpp"))
    reasons += "; torch: available.*Leave `backend` out"
    with pytest.raises(BackendError, match=reasons):
        operator(ZERO, "triton")


def test_a_placement_takes_the_call_over(operator):
    class Doubled:
        def run(self, operator, problem, backend):
            return 2 * operator.implementations[operator.choose(problem, backend)].run(problem)

    with placement(Doubled()):
        assert operator(ZERO) == 4
        assert operator(ZERO, "reference") == 2
    assert operator(ZERO) == 2


def test_triton_needs_its_library_and_a_gpu(operator, monkeypatch):
    operator.implementations["triton"] = form(3)
    monkeypatch.setattr(_operator, "_IS_INTERPRETED", False)
    monkeypatch.setattr(_operator, "_HAS_TRITON", False)
    for device in (CPU, META, GPU):
        assert 'pip install "attensor[triton]"' in operator.why_not("triton", device)
    assert operator.best(GPU) == "torch"
    monkeypatch.setattr(_operator, "_HAS_TRITON", True)
    assert "need a GPU, the tensors are on cpu; set TRITON_INTERPRET=1" in operator.why_not("triton", CPU)
    assert operator.best(CPU) == "torch"
    assert operator.best(GPU) == "triton"
    assert operator.why_not("triton", META) is None
    assert operator.best(META) == "torch"


def test_the_interpreter_runs_kernels_on_a_cpu_only_when_asked_for(operator, monkeypatch):
    operator.implementations["triton"] = form(3)
    monkeypatch.setattr(_operator, "_HAS_TRITON", True)
    monkeypatch.setattr(_operator, "_IS_INTERPRETED", True)
    assert operator(ZERO, "triton") == 3
    with attensor.backend("triton"):
        assert operator(ZERO) == 3
    assert operator(ZERO) == 2
    assert "need a GPU, the tensors are on xpu" in operator.why_not("triton", torch.device("xpu"))


def test_cpp_needs_a_cpu_and_its_library(operator, monkeypatch):
    operator.implementations["cpp"] = form(3)

    def say(unasked, demanded):
        monkeypatch.setattr(build, "why_not_by_default", lambda: unasked)
        monkeypatch.setattr(build, "why_not", lambda _: demanded)

    say("no C++ compiler", "no C++ compiler")
    assert operator(ZERO) == 2
    with pytest.raises(BackendError, match=r"'cpp' cannot run on cpu .*; cpp: no C.. compiler; torch: available"):
        operator(ZERO, "cpp")
    say("not built yet", None)  # finished after this process began without
    assert operator(ZERO) == 2
    assert operator(ZERO, "cpp") == 3
    say(None, None)
    assert operator(ZERO) == 3
    with attensor.backend("torch"):
        assert operator(ZERO) == 2
    for device in (META, GPU):
        assert operator.why_not("cpp", device) == f"cpp kernels run on a CPU, the tensors are on {device}"


def test_an_operator_that_cannot_run_at_all_says_so(operator):
    operator.implementations.clear()
    with pytest.raises(BackendError, match="no back-end can run on cpu"):
        operator(ZERO)


def test_unknown_names_are_refused(operator):
    with pytest.raises(ValueError, match=r"backend must be one of .*, got 'cuda'"):
        operator(ZERO, "cuda")
    with pytest.raises(ValueError, match="backend: name must be one of"), attensor.backend("cuda"):
        pass


def test_a_compiled_function_follows_the_context_and_the_problem(operator):
    compiled = torch.compile(lambda x, is_hard: operator(Problem(x, is_hard)), fullgraph=True, backend="eager")
    seen = [compiled(torch.zeros(()), False).item(), compiled(torch.zeros(()), True).item()]
    with attensor.backend("reference"):
        seen.append(compiled(torch.zeros(()), False).item())
    assert [*seen, compiled(torch.zeros(()), False).item()] == [2, 1, 1, 2]
