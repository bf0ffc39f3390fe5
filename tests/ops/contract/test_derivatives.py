"""Laws of derivatives: finite differences, both modes, two orders, `torch.func`, any part of the inputs and results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.ops.contract.contract import Contract
from tests.ops.contract.laws import EVERY_CASE, EVERY_FORM, assert_equal, first, gradients, of_floats, weighted
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@EVERY_CASE
def test_gradients_are_finite_differences(contract: Contract, form: str, case: str) -> None:
    function, floats = of_floats(contract, form, contract.cases[case]())

    def finite(*floats: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.where(x.isfinite(), x, 0.0) for x in function(*floats))

    tracked = [x.requires_grad_() for x in floats]
    if all(x.numel() for x in tracked):
        assert torch.autograd.gradcheck(finite, tracked, fast_mode=True)


@EVERY_CASE
def test_jvp_and_second_derivatives_are_the_definition_s(contract: Contract, form: str, case: str) -> None:
    inputs = contract.cases[case]()
    results = []
    for which in (form, "reference"):
        function, floats = of_floats(contract, which, inputs)
        tangents = tuple(x.nan_to_num().cos() for x in floats)
        outs, moved = torch.func.jvp(function, tuple(floats), tangents)
        tracked = [x.detach().requires_grad_() for x in floats]
        grads = torch.autograd.grad(weighted(list(function(*tracked))), tracked, create_graph=True, allow_unused=True)
        norm = torch.stack([g.square().sum() for g in grads if g is not None]).sum()
        second = [torch.zeros_like(x) for x in tracked]
        if norm.requires_grad:
            second = list(torch.autograd.grad(norm, tracked, allow_unused=True, materialize_grads=True))
        results.append([*outs, *moved, *second])
    for found, expected in zip(*results, strict=True):
        known = expected.isfinite()
        assert_equal(found[known], expected[known])


@EVERY_CASE
def test_func_grad_is_autograd_s_and_has_a_tangent(contract: Contract, form: str, case: str) -> None:
    inputs = contract.cases[case]()
    found = []
    for which in (form, "reference"):
        function, floats = of_floats(contract, which, inputs)

        def gradient(*floats: Tensor, function: Any = function) -> tuple[Tensor, ...]:
            return torch.func.grad(lambda *y: weighted(function(*y)), tuple(range(len(floats))))(*floats)

        tangents = tuple(x.nan_to_num().sin() for x in floats)
        found.append(torch.func.jvp(gradient, tuple(floats), tangents))
        assert_equal(gradient(*floats), tuple(gradients(contract, form, inputs, list(inputs.floats))[1]))
    assert_equal(*found)


@EVERY_CASE
def test_vmap_of_values_and_gradients(contract: Contract, form: str, case: str) -> None:
    """Over all tensors, and over each alone in another dimension."""
    function, floats = of_floats(contract, form, contract.cases[case]())
    every = tuple(range(len(floats)))

    def both(*floats: Tensor) -> tuple[Any, ...]:
        return torch.func.grad(lambda *x: weighted(function(*x)), every)(*floats), function(*floats)

    for in_dims in ((0,) * len(floats), *(tuple(1 if i == mapped else None for i in every) for mapped in every)):
        many = [x if d is None else torch.stack([x, 0.5 * x, x.flip(0)], d) for x, d in zip(floats, in_dims)]
        found = torch.func.vmap(both, in_dims)(*many)
        for index in range(3):
            expected = both(*(x if d is None else x.select(d, index) for x, d in zip(many, in_dims)))
            assert_equal([x[index] for x in found[0]], list(expected[0]))
            assert_equal([x[index] for x in found[1]], list(expected[1]))


@EVERY_CASE
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of operations that are torch's own
def test_batched_gradients_are_those_of_each(contract: Contract, form: str, case: str) -> None:
    """`torch.autograd.functional.jacobian(vectorize=True)` asks for them."""
    function, floats = of_floats(contract, form, contract.cases[case]())
    leaves = [x.requires_grad_() for x in floats]
    out = function(*leaves)[0]
    upstream = torch.stack([out.detach().sin(), out.detach().cos(), torch.ones_like(out)])
    reached = torch.autograd.grad(out, leaves, upstream[0], allow_unused=True, retain_graph=True)
    leaves = [
        x for x, one in zip(leaves, reached, strict=True) if one is not None
    ]  # zeros in place of none have no batch

    def gradients(upstream: Tensor, is_batched: bool = False) -> Any:
        return torch.autograd.grad(out, leaves, upstream, retain_graph=True, is_grads_batched=is_batched)

    for one, found in zip(upstream, zip(*gradients(upstream, True), strict=True), strict=True):
        assert_equal(found, gradients(one))


@EVERY_CASE
def test_a_gradient_is_the_same_whatever_else_is_wanted(contract: Contract, form: str, case: str) -> None:
    """Of one tensor alone, and as the sum over the results, each used alone."""
    inputs = contract.cases[case]()
    names = list(inputs.floats)
    outs, whole = gradients(contract, form, inputs, names)
    for name, expected in zip(names, whole, strict=True):
        assert_equal(gradients(contract, form, inputs, [name])[1], [expected])
    parts = [gradients(contract, form, inputs, names, only=only)[1] for only in range(len(outs))]
    assert_equal([sum(x) for x in zip(*parts, strict=True)], whole)


@EVERY_FORM
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_compute_the_same(contract: Contract, form: str, use_reentrant: bool) -> None:
    inputs = first(contract)
    function, floats = of_floats(contract, form, inputs)
    tracked = [x.detach().requires_grad_() for x in floats]
    weighted(checkpoint(function, *tracked, use_reentrant=use_reentrant)).backward()
    assert_equal([x.grad for x in tracked], gradients(contract, form, inputs, list(inputs.floats))[1], 0)
