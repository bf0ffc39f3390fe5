"""What the laws share: which forms and cases there are, a call of one, its gradients, and how results are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.ops.contract import registrations  # noqa: F401 (fills the list)
from tests.ops.contract.contract import CONTRACTS, Contract, Inputs
from torch import Tensor

import attensor

FORMS = [(contract, form) for contract in CONTRACTS.values() for form in contract.backends]
ALL = [(contract, form, case) for contract, form in FORMS for case in contract.cases]


def form_id(value: Any) -> str:
    return value.name if isinstance(value, Contract) else str(value)


def cases(chosen: Sequence[tuple[Contract, str, str]], quick: int = 3) -> pytest.MarkDecorator:
    """A test for each of the chosen (contract, form, case); beyond an operator's first `quick` cases slow ones."""
    marked = [
        pytest.param(contract, form, case, marks=[pytest.mark.slow] * (list(contract.cases).index(case) >= quick))
        for contract, form, case in chosen
    ]
    return pytest.mark.parametrize(("contract", "form", "case"), marked, ids=form_id)


EVERY_CASE = cases(ALL)
EVERY_FORM = pytest.mark.parametrize(("contract", "form"), FORMS, ids=form_id)
EVERY_OPERATOR = pytest.mark.parametrize("contract", CONTRACTS.values(), ids=form_id)


def first(contract: Contract) -> Inputs:
    return next(iter(contract.cases.values()))()


def weighted(tensors: Sequence[Tensor], only: int | None = None) -> Tensor:
    """A loss of uneven weights: a plain sum hides transposed gradients. Rows that see nothing (-inf) do not count."""
    total = torch.zeros((), dtype=torch.float64, device=tensors[0].device)
    for number, x in enumerate(tensors):
        if only in (None, number):
            weights = torch.linspace(-1, 1, x.numel(), dtype=torch.float64, device=x.device).view(x.shape)
            total = total + (torch.where(x.isfinite(), x, 0.0).double() * (weights + 0.3 + number)).sum()
    return total


def run(contract: Contract, form: str, inputs: Inputs, autocast: bool = False) -> list[Tensor]:
    """The result of one form, or of the definition ("reference")."""
    if form == "reference":
        return contract.call(contract.reference, inputs)
    with attensor.backend(form), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return contract.call(contract.function, inputs)


def gradients(
    contract: Contract,
    form: str,
    inputs: Inputs,
    wanted: Sequence[str],
    *,
    only: int | None = None,
    autocast: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """The results, and the gradients of a weighted loss for the wanted tensors, of all results or of one."""
    tracked = {name: inputs.tensors[name].detach().requires_grad_() for name in wanted}
    outs = run(contract, form, inputs.replaced(tracked), autocast)
    loss = weighted(outs, only)
    if not loss.requires_grad:
        return outs, [torch.zeros_like(x) for x in tracked.values()]
    grads = torch.autograd.grad(loss, list(tracked.values()), allow_unused=True, materialize_grads=True)
    return [x.detach() for x in outs], list(grads)


def with_gradients(contract: Contract, form: str, inputs: Inputs, autocast: bool = False) -> list[Tensor]:
    """The results and the gradient of a weighted loss for every floating tensor."""
    outs, grads = gradients(contract, form, inputs, list(inputs.floats), autocast=autocast)
    return [*outs, *grads]


def of_floats(contract: Contract, form: str, inputs: Inputs) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """The operator as a function of its floating tensors."""
    names = list(inputs.floats)

    def function(*floats: Tensor) -> tuple[Tensor, ...]:
        return tuple(run(contract, form, inputs.replaced(dict(zip(names, floats, strict=True)))))

    return function, list(inputs.floats.values())


def assert_equal(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
