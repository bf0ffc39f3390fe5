"""The laws of every operator, for each of its forms on a CPU; `registrations/` names the operators."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.ops.contract import registrations  # noqa: F401 (fills the list)
from tests.ops.contract.contract import CONTRACTS, Contract, Inputs, weighted
from tests.ops.contract.inputs import ALLOWED
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import attensor
from attensor import ops

FORMS = [(contract, form) for contract in CONTRACTS.values() for form in contract.backends]
ALL = [(contract, form, case) for contract, form in FORMS for case in contract.cases]


def form_id(value: Any) -> str:
    return value.name if isinstance(value, Contract) else str(value)


EVERY_CASE = pytest.mark.parametrize(("contract", "form", "case"), ALL, ids=form_id)
EVERY_FORM = pytest.mark.parametrize(("contract", "form"), FORMS, ids=form_id)


def first(contract: Contract) -> Inputs:
    return next(iter(contract.cases.values()))()


def run(contract: Contract, form: str, inputs: Inputs) -> list[Tensor]:
    """The result of one form, or of the definition ("reference")."""
    if form == "reference":
        return contract.call(contract.reference, inputs)
    with attensor.backend(form):
        return contract.call(contract.function, inputs)


def with_gradients(contract: Contract, form: str, inputs: Inputs) -> list[Tensor]:
    """The result and the gradient of a weighted loss for every floating tensor."""
    tracked = {name: x.detach().requires_grad_() for name, x in inputs.floats.items()}
    outs = run(contract, form, inputs.replaced(tracked))
    grads = torch.autograd.grad(weighted(outs), list(tracked.values()), allow_unused=True, materialize_grads=True)
    return [*(x.detach() for x in outs), *grads]


def of_floats(contract: Contract, form: str, inputs: Inputs) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """The operator as a function of its floating tensors."""
    names = list(inputs.floats)

    def function(*floats: Tensor) -> tuple[Tensor, ...]:
        return tuple(run(contract, form, inputs.replaced(dict(zip(names, floats, strict=True)))))

    return function, list(inputs.floats.values())


def assert_equal(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_every_public_operator_has_a_contract() -> None:
    public = {n for n, value in vars(ops).items() if inspect.isfunction(value) and not n.endswith("_reference")}
    assert public - {"backend", "kernels_form"} == set(CONTRACTS)


@EVERY_CASE
def test_values_and_gradients_are_the_definition_s(contract: Contract, form: str, case: str) -> None:
    inputs = contract.cases[case]()
    before = {name: x.clone() for name, x in inputs.tensors.items()}
    assert_equal(with_gradients(contract, form, inputs), with_gradients(contract, "reference", inputs))
    assert_equal(run(contract, form, inputs), run(contract, "reference", inputs))  # the path without gradients
    assert all(torch.equal(inputs.tensors[name], x) for name, x in before.items())


@EVERY_CASE
def test_jvp_and_second_derivatives_are_the_definition_s(contract: Contract, form: str, case: str) -> None:
    inputs = contract.cases[case]()
    results = []
    for which in (form, "reference"):
        function, floats = of_floats(contract, which, inputs)
        tangents = tuple(x.cos() for x in floats)
        outs, moved = torch.func.jvp(function, tuple(floats), tangents)
        tracked = [x.detach().requires_grad_() for x in floats]
        grads = torch.autograd.grad(weighted(list(function(*tracked))), tracked, create_graph=True, allow_unused=True)
        norm = torch.stack([g.square().sum() for g in grads if g is not None]).sum()
        second = [torch.zeros_like(x) for x in tracked]
        if norm.requires_grad:
            second = list(torch.autograd.grad(norm, tracked, allow_unused=True, materialize_grads=True))
        results.append([*outs, *moved, *second])
    finite = [[torch.nan_to_num(x) for x in found] for found in results]
    assert_equal(*finite)


@EVERY_FORM
def test_vmap_of_values_and_gradients(contract: Contract, form: str) -> None:
    inputs = first(contract)
    function, floats = of_floats(contract, form, inputs)
    many = [torch.stack([x, 0.5 * x, x.flip(0)]) for x in floats]

    def both(*floats: Tensor) -> tuple[Any, ...]:
        every = tuple(range(len(floats)))
        return torch.func.grad(lambda *x: weighted(list(function(*x))), every)(*floats), function(*floats)

    found = torch.func.vmap(both)(*many)
    for index in range(3):
        with torch.no_grad():
            alone = [x[index] for x in many]
        expected = both(*alone)
        assert_equal([x[index] for x in found[0]], list(expected[0]))
        assert_equal([x[index] for x in found[1]], list(expected[1]))


@EVERY_FORM
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of operations that are torch's own
def test_batched_gradients_are_those_of_each(contract: Contract, form: str) -> None:
    """`torch.autograd.functional.jacobian(vectorize=True)` asks for them."""
    function, floats = of_floats(contract, form, first(contract))
    leaves = [x.requires_grad_() for x in floats]
    out = function(*leaves)[0]
    upstream = torch.stack([out.detach().sin(), out.detach().cos(), torch.ones_like(out)])

    def gradients(upstream: Tensor, is_batched: bool = False) -> Any:
        options = {"retain_graph": True, "materialize_grads": True, "is_grads_batched": is_batched}
        return torch.autograd.grad(out, leaves, upstream, allow_unused=True, **options)

    for one, found in zip(upstream, zip(*gradients(upstream, True), strict=True), strict=True):
        assert_equal(found, gradients(one))


@EVERY_FORM
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_keeps_its_error_and_dtype(contract: Contract, form: str, dtype: torch.dtype) -> None:
    rounded = first(contract).to(dtype)
    exact = with_gradients(contract, "reference", rounded.to(torch.float64))
    bound = contract.float_error if dtype == torch.float32 else contract.half_error
    found = with_gradients(contract, form, rounded)
    assert found[0].dtype == dtype
    for got, expected in zip(found, exact, strict=True):
        assert (got.double() - expected).norm() <= bound * expected.norm() + 1e-12


@EVERY_FORM
@pytest.mark.parametrize("layout", ["permuted", "expanded", "with gaps"])
def test_any_strides(contract: Contract, form: str, layout: str) -> None:
    def laid_out(x: Tensor) -> Tensor:
        if layout == "permuted":
            return x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
        if layout == "with gaps":
            return torch.stack([x, x], -1)[..., 0]
        return x[..., :1].expand(x.shape)

    inputs = first(contract)
    strided = inputs.replaced({name: laid_out(x) for name, x in inputs.floats.items()})
    plain = inputs.replaced({name: x.contiguous() for name, x in strided.floats.items()})
    assert_equal(with_gradients(contract, form, strided), with_gradients(contract, form, plain), 1e-12)


@EVERY_FORM
def test_rows_of_a_batch_do_not_see_each_other(contract: Contract, form: str) -> None:
    if not contract.batch:
        pytest.skip("the operator has no batch of its own: dimensions broadcast")
    inputs = first(contract)
    for rows in (slice(1, 2), slice(0, 0)):
        part = inputs.replaced(
            {
                n: x.movedim(contract.batch[n], 0)[rows].movedim(0, contract.batch[n])
                for n, x in inputs.floats.items()
                if n in contract.batch
            }
        )
        whole, alone = run(contract, form, inputs), run(contract, form, part)
        assert_equal(alone, [x[rows] for x in whole], 1e-12)


@EVERY_FORM
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_packed_sequences_are_separate_ones(contract: Contract, form: str, index_dtype: torch.dtype) -> None:
    if not contract.tokens:
        pytest.skip("the operator takes no packed sequences")
    inputs, lengths = first(contract), [3, 0, 1, 5]
    total, bounds = sum(lengths), torch.tensor([0, 3, 3, 4, 9], dtype=index_dtype)

    def enough(name: str, x: Tensor) -> Tensor:
        if name in contract.per_sequence:
            return torch.cat([x[:1] * (1 + n) for n in range(len(lengths))])
        if name not in contract.tokens:
            return x
        dim = contract.tokens[name]
        repeats = -(-total // x.shape[dim])
        return torch.cat([x[:1] * (1 - 0.1 * n) for n in range(repeats)], dim).narrow(dim, 0, total)

    tensors = {name: enough(name, x) for name, x in inputs.tensors.items()}
    packed = run(contract, form, Inputs({**tensors, "cu_seqlens": bounds}, inputs.options))
    apart: list[list[Tensor]] = []
    for n, (start, length) in enumerate(zip(bounds.tolist(), lengths, strict=False)):
        part = {
            name: x.narrow(contract.tokens[name], start, length)
            if name in contract.tokens
            else x[n : n + 1]
            if name in contract.per_sequence
            else x
            for name, x in tensors.items()
        }
        apart.append(run(contract, form, Inputs(part, inputs.options)))
    joined = [torch.cat([found[0] for found in apart], 1)]
    joined += (
        [torch.cat([found[i] for found in apart], 0) for i in range(1, len(packed))]
        if contract.per_sequence
        else [torch.cat([found[i] for found in apart], 1) for i in range(1, len(packed))]
    )
    assert_equal(packed, joined)


@EVERY_FORM
def test_unwritten_memory_does_not_show(contract: Contract, form: str) -> None:
    """`torch.empty` is filled with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        for case in contract.cases.values():
            inputs = case()
            assert_equal(with_gradients(contract, form, inputs), with_gradients(contract, "reference", inputs))
    finally:
        torch.use_deterministic_algorithms(False)


@EVERY_FORM
def test_traces_as_one_graph_forward_and_backward(contract: Contract, form: str) -> None:
    inputs = first(contract)
    function, floats = of_floats(contract, form, inputs)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: weighted(list(function(*x))), fullgraph=True, backend="aot_eager")
    tracked = [x.detach().requires_grad_() for x in floats]
    expected = weighted(list(function(*tracked)))
    found = compiled(*tracked)
    assert_equal(found, expected)
    assert_equal(torch.autograd.grad(found, tracked), torch.autograd.grad(expected, tracked))


class Kernels(TorchDispatchMode):
    """Notes the library operators of attensor that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "attensor":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@EVERY_FORM
def test_library_operators_obey_torch(contract: Contract, form: str) -> None:
    inputs = first(contract)
    with Kernels() as kernels:
        with_gradients(contract, form, inputs)
    seen = dict(kernels.calls)
    for func, args in seen.items():
        torch.library.opcheck(func, args, test_utils=("test_schema", "test_faketensor"))
    assert seen or form != "cpp"


@EVERY_FORM
def test_useful_operations_are_counted(contract: Contract, form: str) -> None:
    if contract.flops is None:
        pytest.skip("made of torch's own products, which are counted as they are")
    inputs = first(contract)
    with FlopCounterMode(display=False) as counter:
        run(contract, form, inputs)
    assert counter.get_total_flops() == pytest.approx(contract.flops(inputs), rel=0.05)


BAD: dict[str, Callable[[Tensor], Tensor]] = {
    "of another rank": lambda x: x[None, None],
    "of integers": lambda x: x.long() if x.is_floating_point() else x.double(),
    "of another size": lambda x: torch.cat([x, x, x[..., :1]], -1),
    "of eight bits": lambda x: x.to(torch.float8_e4m3fn) if x.is_floating_point() else x.double(),
    "elsewhere": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=form_id)
def test_a_bad_tensor_is_refused_by_name(contract: Contract, fault: str) -> None:
    for case in contract.cases.values():
        inputs = case()
        for name, x in inputs.tensors.items():
            if {name, f"{name} of {contract.name}"} & ALLOWED.get(fault, set()):
                continue
            with pytest.raises((ValueError, TypeError), match=contract.name):
                contract.call(contract.function, inputs.replaced({name: BAD[fault](x)}))
