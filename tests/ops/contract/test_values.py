"""Laws of values: every form is the definition, whatever dtypes, strides, rows, threads; new memory holds NaN."""

from __future__ import annotations

import inspect

import pytest
import torch
from tests.ops.contract.contract import CONTRACTS, Contract, Inputs
from tests.ops.contract.laws import (
    ALL,
    EVERY_CASE,
    EVERY_FORM,
    EVERY_OPERATOR,
    assert_equal,
    cases,
    first,
    run,
    with_gradients,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import attensor
from attensor import ops

pytestmark = pytest.mark.usefixtures("poisoned")


def test_every_public_operator_has_a_contract() -> None:
    public = {n for n, value in vars(ops).items() if inspect.isfunction(value) and not n.endswith("_reference")}
    assert public - {"backend", "kernels_form"} == set(CONTRACTS)


@cases([each for each in ALL if each[1] != "reference"])  # a definition alone has an oracle in its own tests
def test_values_and_gradients_are_the_definition_s(contract: Contract, form: str, case: str) -> None:
    inputs = contract.cases[case]()
    before = {name: x.clone() for name, x in inputs.tensors.items()}
    assert_equal(with_gradients(contract, form, inputs), with_gradients(contract, "reference", inputs))
    assert_equal(run(contract, form, inputs), run(contract, "reference", inputs))  # the path without gradients
    assert all(torch.equal(inputs.tensors[name], x) for name, x in before.items())


@EVERY_OPERATOR
def test_the_context_chooses_the_definition(contract: Contract) -> None:
    for case in contract.cases.values():
        with attensor.backend("reference"):
            assert_equal(contract.call(contract.function, case()), contract.call(contract.reference, case()), 0)


def assert_near(contract: Contract, found: list[Tensor], rounded: Inputs, bound: float) -> None:
    """Near the definition in float64 of the same rounded inputs, and in the documented dtype."""
    exact = with_gradients(contract, "reference", rounded.to(torch.float64))
    outputs = len(exact) - len(rounded.floats)
    assert found[0].dtype == rounded.tensors[contract.dtype_of].dtype
    assert all(x.dtype in (torch.float32, torch.float64) for x in found[1:outputs])
    largest = max(float(x.nan_to_num(neginf=0.0).norm()) for x in exact)
    for got, expected in zip(found, exact, strict=True):
        assert torch.equal(got.isfinite(), expected.isfinite())
        size = float(expected.nan_to_num(neginf=0.0).norm())
        size = size if size > 1e-9 * largest else largest  # derivatives that vanish are differences of others
        assert torch.where(expected.isfinite(), got.double() - expected, 0.0).norm() <= bound * size + 1e-12


@EVERY_CASE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_keeps_its_error_and_dtype(
    contract: Contract, form: str, case: str, dtype: torch.dtype
) -> None:
    rounded = contract.cases[case]().to(dtype)
    bound = contract.float_error if dtype == torch.float32 else contract.half_error
    found = with_gradients(contract, form, rounded)
    assert_near(contract, found, rounded, bound)
    assert_equal(with_gradients(contract, form, rounded, autocast=True), found, 0)


@EVERY_CASE
def test_one_tensor_of_another_dtype_is_refused_or_costs_one_rounding(contract: Contract, form: str, case: str) -> None:
    inputs = contract.cases[case]()
    for name in inputs.floats:
        mixed = {n: x.to(torch.float32 if n == name else torch.bfloat16) for n, x in inputs.floats.items()}
        refusal, found = "", []
        try:
            found = with_gradients(contract, form, inputs.replaced(mixed))
        except TypeError as error:
            refusal = str(error)
        if found:
            assert_near(contract, found, inputs.replaced(mixed), contract.half_error)
        else:
            assert refusal.startswith(f"{contract.name}: ")
            assert name.split()[-1] in refusal


@EVERY_CASE
@pytest.mark.parametrize("layout", ["permuted", "expanded", "with gaps", "negated when read"])
def test_any_strides(contract: Contract, form: str, case: str, layout: str) -> None:
    def laid_out(x: Tensor) -> Tensor:
        if layout == "permuted":
            return x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
        if layout == "with gaps":
            return torch.stack([x, x * torch.nan], -1)[..., 0]
        if layout == "negated when read":
            return torch._neg_view(-x)
        return x[..., :1].expand(x.shape)

    inputs = contract.cases[case]()
    strided = inputs.replaced({name: laid_out(x) for name, x in inputs.floats.items()})
    plain = inputs.replaced({name: x.resolve_neg().contiguous() for name, x in strided.floats.items()})
    assert_equal(with_gradients(contract, form, strided), with_gradients(contract, form, plain), 1e-12)
    assert_equal(run(contract, form, strided), run(contract, form, plain), 1e-12)


@EVERY_CASE
def test_rows_of_a_batch_do_not_see_each_other(contract: Contract, form: str, case: str) -> None:
    inputs = contract.cases[case]()
    if not contract.batch or "cu_seqlens" in inputs.tensors:
        return  # dimensions broadcast, or all sequences are one row
    rows_of = {
        name: x.movedim(contract.batch[name], 0)
        for name, x in inputs.tensors.items()
        if name in contract.batch and x.ndim > 1
    }
    whole = run(contract, form, inputs)
    for rows in (slice(1, 2), slice(0, 0)):
        part = {name: x[rows].movedim(0, contract.batch[name]) for name, x in rows_of.items()}
        assert_equal(run(contract, form, inputs.replaced(part)), [x[rows] for x in whole], 1e-12)


@EVERY_FORM
def test_large_inputs_stay_finite(contract: Contract, form: str) -> None:
    inputs = first(contract).to(torch.float32)
    large = {
        name: x if "decay" in name or "lses" in name or name in contract.bounded else 1e4 * x
        for name, x in inputs.floats.items()
    }
    known = [x.isfinite() for x in with_gradients(contract, "reference", inputs.to(torch.float64))]
    found = [x.isfinite() for x in with_gradients(contract, form, inputs.replaced(large))]
    assert_equal(found, known)


@EVERY_FORM
def test_repeated_calls_and_other_numbers_of_threads_give_the_same(contract: Contract, form: str) -> None:
    """Also after calls of other sizes have used the same memory."""
    every = [case() for case in contract.cases.values()]
    alone = [with_gradients(contract, form, inputs) for inputs in every]
    assert_equal([with_gradients(contract, form, inputs) for inputs in every], alone, 0)
    before = torch.get_num_threads()
    for threads in (2, 7):
        torch.set_num_threads(threads)
        try:
            assert_equal([with_gradients(contract, form, inputs) for inputs in every], alone, 1e-12)
        finally:
            torch.set_num_threads(before)


@EVERY_CASE
def test_fake_tensors_have_the_form_of_real_ones(contract: Contract, form: str, case: str) -> None:
    inputs = contract.cases[case]()
    real = with_gradients(contract, form, inputs)
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(x) for name, x in inputs.tensors.items()}
        found = with_gradients(contract, form, inputs.replaced(fake))
    for fake, x in zip(found, real, strict=True):
        assert (fake.shape, fake.dtype) == (x.shape, x.dtype)
        steps = [(a, b) for n, a, b in zip(x.shape, fake.stride(), x.stride(), strict=True) if n > 1 and x.numel()]
        assert all(a == b for a, b in steps)
