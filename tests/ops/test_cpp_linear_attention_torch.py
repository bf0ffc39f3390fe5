"""`linear_attention` in C++ under threads, torch.library, torch.compile and checkpoints, and without a compiler."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from tests.ops.test_linear_attention import DECAYS, make, results, weights
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import attensor
from attensor.errors import BackendError
from attensor.ops._native import build
from attensor.ops._native.compiler import compiler
from attensor.ops._operator import OPERATORS
from attensor.ops.linear_attention import linear_attention
from attensor.ops.linear_attention.cpp import recurrence as kernels
from attensor.ops.linear_attention.problem import Inputs

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
# torch.compile itself instantiates an autograd.Function while it traces one
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

in_cpp = partial(linear_attention, backend="cpp")
PACKED = torch.tensor([0, 0, 7, 12, 19])
FULL = torch.tensor([0, 5, 14, 19])  # in chunks of 4 tokens, with a state kept before each, it needs them all


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


@needs_compiler
@pytest.mark.parametrize("decay", DECAYS)
def test_repeating_a_call_gives_the_same_bits(decay: str) -> None:
    """Also after calls with other sizes have used the same memory."""
    tensors = make(decay, tokens=101)
    first = results(in_cpp, tensors)
    results(in_cpp, make("channel", tokens=300, key_dim=70, value_dim=90))
    assert_equal(results(in_cpp, tensors), first)


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


@needs_compiler
@pytest.mark.parametrize(
    ("decay", "wanted"),
    [
        (decay, wanted)
        for decay in DECAYS
        for wanted in ("q", "k", "v", "log_decay", "initial_state")
        if (decay, wanted) != ("none", "log_decay")
    ],
)
def test_a_gradient_is_the_same_whatever_else_is_wanted(decay: str, wanted: str) -> None:
    tensors = make(decay, tokens=19)
    expected = results(in_cpp, tensors, chunk_size=4)[f"gradient of {wanted}"]
    alone = {name: x if x is None or name == wanted else x.detach() for name, x in tensors.items()}
    with Calls() as calls:
        pair = in_cpp(**alone, output_final_state=True, chunk_size=4)
        found = torch.autograd.grad(pair, alone[wanted], [weights(x) for x in pair])[0]
    assert torch.equal(found, expected)
    assert calls.names() == ["linear_attention", "linear_attention_backward"]
    assert calls.seen[1][1][-1] is (wanted == "log_decay")


@needs_compiler
@pytest.mark.parametrize("used", [0, 1])
def test_one_of_both_results_may_be_used_alone(used: int) -> None:
    tensors = make("channel", tokens=19)
    inputs = list(tensors.values())
    out = in_cpp(**tensors, output_final_state=True)
    grads = [torch.zeros_like(x) for x in out]
    grads[used] = weights(out[used])
    both = torch.autograd.grad(out, inputs, grads, retain_graph=True)
    alone = torch.autograd.grad(out[used], inputs, grads[used], materialize_grads=True)
    assert all(map(torch.equal, alone, both))


@needs_compiler
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_compute_the_same(decay: str, use_reentrant: bool) -> None:
    tensors = make(decay, tokens=101)
    expected = results(in_cpp, tensors)

    def saved(**given: Any) -> tuple[Tensor, Tensor]:
        def function(*arguments: Tensor | None) -> tuple[Tensor, Tensor]:
            return in_cpp(**given | dict(zip(tensors, arguments)))

        found: tuple[Tensor, Tensor] = checkpoint(function, *tensors.values(), use_reentrant=use_reentrant)
        return found

    with Calls() as calls:
        if use_reentrant:  # it has no torch.autograd.grad
            out, state = saved(**tensors, output_final_state=True)
            ((out * weights(out)).sum() + (state * weights(state)).sum()).backward()
            found = {f"gradient of {n}": x.grad for n, x in tensors.items() if x is not None}
        else:
            found = results(saved, tensors)
    assert calls.names() == ["linear_attention", "linear_attention", "linear_attention_backward"]
    assert_equal(found, {name: expected[name] for name in found})


@needs_compiler
@pytest.mark.parametrize("decay", DECAYS)
def test_vmap_of_packed_sequences(decay: str) -> None:
    tensors = {n: x for n, x in make(decay, batch=1, tokens=19, rows=4).items() if x is not None}
    many = {n: torch.stack([x.detach(), 0.5 * x.detach(), 0.7 * x.detach()]) for n, x in tensors.items()}

    def loss(given: dict[str, Tensor]) -> Tensor:
        out, state = in_cpp(**given, cu_seqlens=PACKED, output_final_state=True, chunk_size=4)
        return (out * weights(out)).sum() + (state * weights(state)).sum()

    grads, values = torch.func.vmap(torch.func.grad_and_value(loss))(many)
    for n in range(3):
        expected, value = torch.func.grad_and_value(loss)({name: x[n] for name, x in many.items()})
        torch.testing.assert_close(values[n], value, rtol=1e-12, atol=0)
        for name, x in expected.items():
            torch.testing.assert_close(grads[name][n], x, rtol=1e-12, atol=1e-12)


# compilers


def operands(decay: str, packed: bool, dtype: torch.dtype) -> list[Tensor | None]:
    """q, k, v, log_decay, initial_state and cu_seqlens as the autograd function hands them on."""
    tensors = make(decay, batch=1 if packed else 2, tokens=19, rows=3 if packed else None, dtype=dtype)
    q, k, v, log_decay, state = (x if x is None else x.detach() for x in tensors.values())
    log_decay = log_decay[None] if decay == "constant" else log_decay
    return [q, k, v, log_decay, state.unsqueeze(1 if packed else 0), FULL if packed else None]


@needs_compiler
@pytest.mark.parametrize(
    ("decay", "packed", "dtype"),
    [("none", False, torch.float16), ("constant", True, torch.float16), ("channel", False, torch.float64)],
    ids=str,
)
def test_what_is_registered_keeps_the_rules(decay: str, packed: bool, dtype: torch.dtype) -> None:
    """Nothing is changed or aliased; shapes, strides and dtypes are what compilers are told."""
    inputs = operands(decay, packed, dtype)
    forward = torch.ops.attensor.cpp_linear_attention.default
    backward = torch.ops.attensor.cpp_linear_attention_backward.default
    needed = kernels._kept_rows(Inputs(*inputs), 4)
    for rows in (0, needed):
        torch.library.opcheck(forward, (*inputs, 0.7, 4, "", rows))
    out, final, kept = forward(*inputs, 0.7, 4, "", needed)
    for decay_gradient in (False, True):
        torch.library.opcheck(backward, (*inputs, kept, weights(out), weights(final), 0.7, 4, "", decay_gradient))


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
