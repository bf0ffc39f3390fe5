"""`linear_attention` in C++ under threads and torch.compile with dynamic lengths, and without a compiler."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from tests.ops.test_linear_attention import DECAYS, make, results
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import attensor
from attensor.errors import BackendError
from attensor.ops._native import build
from attensor.ops._native.compiler import compiler
from attensor.ops._operator import OPERATORS
from attensor.ops.linear_attention import linear_attention

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
# torch.compile itself instantiates an autograd.Function while it traces one
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

in_cpp = partial(linear_attention, backend="cpp")
PACKED = torch.tensor([0, 0, 7, 12, 19])


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


class Calls(TorchDispatchMode):
    """The calls of attensor's own operators: name, arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[Any, ...], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **kwargs or {})
        if func.namespace == "attensor":
            self.seen.append((func._schema.name, args, found))
        return found

    def names(self) -> list[str]:
        return [name.removeprefix("attensor::cpp_") for name, *_ in self.seen]


# threads


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("batch", "packed"), [(1, False), (3, False), (1, True)])
@pytest.mark.parametrize("heads", [1, 5])
def test_results_do_not_depend_on_the_number_of_threads(
    decay: str, batch: int, packed: bool, heads: int, threads: Callable[[int], None]
) -> None:
    """Threads share out sequences and heads: fewer tasks than threads, as many, and more."""
    sizes = {"batch": batch, "heads": heads, "key_heads": 1, "decay_heads": heads, "rows": 4 if packed else None}
    tensors, packing = make(decay, tokens=19, **sizes), PACKED if packed else None
    alone = results(in_cpp, tensors, chunk_size=2, cu_seqlens=packing)
    for number in (2, 7):
        threads(number)
        assert_equal(results(in_cpp, tensors, chunk_size=2, cu_seqlens=packing), alone)


@needs_compiler
def test_threads_of_python_may_call_at_once() -> None:
    """Each has memory of its own: 4 threads with other sizes and kinds each, 25 times."""
    many = [make(decay, tokens=200, key_dim=9 + 4 * n, value_dim=33) for n, decay in enumerate(DECAYS)]
    alone = [results(in_cpp, tensors) for tensors in many]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(partial(results, in_cpp), many * 25), alone * 25, strict=True):
            assert_equal(found, expected)


# gradients


@needs_compiler
@pytest.mark.parametrize("decay", DECAYS)
def test_without_gradients_no_states_are_kept(decay: str) -> None:
    tensors = make(decay, tokens=101)
    outs, kept = [], []
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context(), Calls() as calls:
            outs.append(in_cpp(**tensors, output_final_state=True, chunk_size=4))
        kept.append(calls.seen[0][2][2].shape[0])
    # one state for every 16 chunks, the most there are between two
    assert kept == [101 // 64 + 1, 0, 0]
    for pair in outs[1:]:
        assert all(map(torch.equal, pair, outs[0]))


# compilers


def squares(*tensors: Tensor | None) -> Tensor:
    q, k, v, log_decay, state = tensors
    pair = in_cpp(q, k, v, log_decay=log_decay, initial_state=state, output_final_state=True)
    return pair[0].square().sum() + pair[1].square().sum()


@needs_compiler
@compiles
@pytest.mark.parametrize("decay", ["constant", "channel"])
def test_other_lengths_are_not_compiled_anew(decay: str) -> None:
    torch.compiler.reset()
    graphs = []

    def noted(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(squares, fullgraph=True, dynamic=True, backend=noted)
    for tokens in (37, 41, 75):
        tensors = list(make(decay, tokens=tokens).values())
        found, expected = (torch.autograd.grad(function(*tensors), tensors) for function in (compiled, squares))
        assert all(map(torch.equal, found, expected))
    assert len(graphs) == 1


# without a compiler


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> str:
    reason = "no C++ compiler: install g++ or set CXX"
    for name in ("_begin", "_look", "why_not_by_default"):
        monkeypatch.setattr(build, name, lambda: reason)
    return reason


def test_without_a_compiler_torch_is_taken(no_compiler: str) -> None:
    tensors = make("channel", tokens=19)
    assert OPERATORS["linear_attention"].best(torch.device("cpu")) == "torch"
    with Calls() as calls:
        found = results(linear_attention, tensors)
    assert not any("cpp" in str(call) for call in calls.names())
    assert_equal(found, results(partial(linear_attention, backend="torch"), tensors))


def test_asking_for_cpp_without_a_compiler_says_why_not(no_compiler: str) -> None:
    expected = f"'cpp' cannot run on cpu .*cpp: {re.escape(no_compiler)}; torch: available"
    with pytest.raises(BackendError, match=expected):
        in_cpp(**make("none"))
    with attensor.backend("cpp"):  # a preference
        linear_attention(**make("none"))


@needs_compiler
def test_with_a_compiler_cpp_is_taken() -> None:
    with Calls() as calls:
        linear_attention(**make("none"))
    assert calls.names() == ["linear_attention"]


def test_cpp_is_refused_for_tensors_elsewhere() -> None:
    tensors = {n: x if x is None else x.to("meta") for n, x in make("none").items()}
    with pytest.raises(BackendError, match="cpp kernels run on a CPU, the tensors are on meta"):
        in_cpp(**tensors)
