"""Laws of torch's tools: one graph, inductor, the library's operators, counted operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.ops.contract.contract import Contract
from tests.ops.contract.laws import (
    ALL,
    EVERY_CASE,
    EVERY_OPERATOR,
    assert_equal,
    cases,
    first,
    of_floats,
    run,
    weighted,
    with_gradients,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

GRAPHS = cases(ALL, quick=1)  # one graph more costs half a second


@GRAPHS
def test_traces_as_one_graph_forward_and_backward(contract: Contract, form: str, case: str) -> None:
    function, floats = of_floats(contract, form, contract.cases[case]())
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: weighted(function(*x)), fullgraph=True, backend="aot_eager")
    tracked = [x.detach().requires_grad_() for x in floats]
    expected, found = weighted(function(*tracked)), compiled(*tracked)
    assert_equal(found, expected)
    assert_equal(*(torch.autograd.grad(x, tracked, allow_unused=True) for x in (found, expected)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # inductor itself uses what torch deprecates
@EVERY_OPERATOR
def test_compiles_with_inductor(contract: Contract) -> None:
    function, floats = of_floats(contract, contract.backends[0], first(contract).to(torch.float32))
    torch._dynamo.reset()
    tracked = [x.detach().requires_grad_() for x in floats]
    compiled = torch.compile(lambda *x: weighted(function(*x)), fullgraph=True)
    found, expected = (torch.autograd.grad(f(*tracked), tracked) for f in (compiled, lambda *x: weighted(function(*x))))
    for got, wanted in zip(found, expected, strict=True):
        assert (got - wanted).norm() <= 1e-4 * wanted.norm()


class Kernels(TorchDispatchMode):
    """Notes the library operators of attensor that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "attensor":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@EVERY_CASE
def test_library_operators_obey_torch(contract: Contract, form: str, case: str) -> None:
    """Nothing is changed or aliased; shapes, strides and dtypes are what compilers are told."""
    inputs = contract.cases[case]()
    with Kernels() as kernels:
        with_gradients(contract, form, inputs)
    seen = dict(kernels.calls)
    for func, args in seen.items():
        torch.library.opcheck(func, args, test_utils=("test_schema", "test_faketensor"))
    assert seen or form != "cpp" or case != next(iter(contract.cases))


@EVERY_CASE
def test_useful_operations_are_counted(contract: Contract, form: str, case: str) -> None:
    """However they are carried out: where nothing is promised, torch counts its own products."""
    inputs = contract.cases[case]()
    promised = contract.flops(inputs, form)
    if promised is None:
        return
    tracked = {name: x.requires_grad_() for name, x in inputs.floats.items()}
    with FlopCounterMode(display=False) as counter:
        loss = weighted(run(contract, form, inputs.replaced(tracked)))
    assert counter.get_total_flops() == promised[0]
    if promised[1] is not None and loss.requires_grad:
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        assert counter.get_total_flops() == promised[1]
