"""Laws of sequences: packed ones are separate, a state carries one on, nothing comes back from the future."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tests.ops.contract.contract import CONTRACTS, Contract, Inputs
from tests.ops.contract.laws import assert_equal, cases, run
from torch import Tensor

pytestmark = pytest.mark.usefixtures("poisoned")

EVERY = [(contract, form) for contract in CONTRACTS.values() for form in ("reference", *contract.backends)]
CUT = [(contract, form, case) for contract, form in EVERY for case in contract.cases if case not in contract.whole]
PACKED = cases([(contract, form, case) for contract, form, case in CUT if contract.tokens])
SPLIT = cases([(contract, form, case) for contract, form, case in CUT if contract.state])
CAUSAL = cases([(contract, form, case) for contract, form in EVERY for case in contract.causal])
BOUNDS = [0, 0, 3, 3, 4, 9]


def stretched(contract: Contract, inputs: Inputs) -> Inputs:
    """As many tokens as BOUNDS ask for, and rows where there is one a sequence."""

    def enough(name: str, x: Tensor) -> Tensor:
        if name in contract.per_sequence:
            return torch.cat([x[:1] * (1 + n) for n in range(len(BOUNDS) - 1)])
        if name not in contract.tokens or x.ndim <= contract.tokens[name]:
            return x
        dim = contract.tokens[name]
        repeats = -(-BOUNDS[-1] // x.shape[dim])
        return torch.cat([x[:1] * (1 - 0.1 * n) for n in range(repeats)], dim).narrow(dim, 0, BOUNDS[-1])

    return inputs.replaced({name: enough(name, x) for name, x in inputs.tensors.items()})


@PACKED
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_packed_sequences_are_separate_ones(contract: Contract, form: str, case: str, index_dtype: torch.dtype) -> None:
    inputs = stretched(contract, contract.cases[case]())
    bounds = {"cu_seqlens": torch.tensor(BOUNDS, dtype=index_dtype)}
    packed = run(contract, form, inputs.replaced(bounds, **contract.packing))
    apart: list[list[Tensor]] = []
    for n, (start, stop) in enumerate(itertools.pairwise(BOUNDS)):
        own = {name: inputs.tensors[name][n : n + 1] for name in contract.per_sequence if name in inputs.tensors}
        apart.append(run(contract, form, contract.cut(inputs, start, stop).replaced(own)))
    dims = [1, *[0 if contract.per_sequence else 1] * (len(packed) - 1)]
    assert_equal(packed, [torch.cat(parts, dim) for dim, *parts in zip(dims, *apart, strict=True)])


@SPLIT
def test_a_state_carries_a_sequence_on(contract: Contract, form: str, case: str) -> None:
    """Not causal, the second part sees the first, which does not see the second."""
    inputs = contract.cases[case]().replaced({}, output_final_state=True)
    tokens = inputs.tensors["q"].shape[1]
    out, state = run(contract, form, inputs)
    for cut in {0, tokens // 3, tokens // 3 + 1, tokens}:
        first, between = run(contract, form, contract.cut(inputs, 0, cut))
        rest = contract.cut(inputs, cut, tokens).replaced({contract.state: between})
        second, end = run(contract, form, rest)
        assert_equal([second, end], [out[:, cut:], state])
        if inputs.options.get("is_causal", True):
            assert_equal(first, out[:, :cut])


@CAUSAL
def test_nothing_comes_back_from_the_future(contract: Contract, form: str, case: str) -> None:
    inputs = contract.cases[case]()
    out, *_ = run(contract, form, inputs)
    later = 2 * out.shape[1] // 3
    for name in inputs.tensors.keys() & contract.tokens.keys():
        changed = inputs.tensors[name].clone()
        changed.narrow(contract.tokens[name], later, 1).sub_(3)
        found, *_ = run(contract, form, inputs.replaced({name: changed}))
        assert_equal(found[:, :later], out[:, :later], contract.causal[case])
        assert not torch.allclose(found[:, later:], out[:, later:])


def spoilt(contract: Contract, inputs: Inputs, name: str, token: int, number: float) -> Inputs:
    """One number of a token replaced in a tensor; a decay can only be NaN."""
    changed = inputs.tensors[name].clone()
    changed.narrow(contract.tokens[name], token, 1)[..., -1] = math.nan if name == "log_decay" else number
    return inputs.replaced({name: changed})


@CAUSAL
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_reaches_no_earlier_token(contract: Contract, form: str, case: str, number: float) -> None:
    inputs = contract.cases[case]()
    out, *_ = run(contract, form, inputs)
    token = 2 * out.shape[1] // 3
    for name in inputs.tensors.keys() & contract.tokens.keys():
        found, *_ = run(contract, form, spoilt(contract, inputs, name, token, number))
        assert_equal(found[:, :token], out[:, :token], 1e-12)
        if name == "q":
            assert_equal(found[:, token + 1 :], out[:, token + 1 :], 1e-12)
            assert not math.isnan(number) or found[:, token].isnan().any()  # hidden as 0 it would be believed


@PACKED
def test_what_is_not_finite_reaches_no_other_sequence(contract: Contract, form: str, case: str) -> None:
    bounds = {"cu_seqlens": torch.tensor(BOUNDS)}
    inputs = stretched(contract, contract.cases[case]()).replaced(bounds, **contract.packing)
    out, *_ = run(contract, form, inputs)
    others = [token for token in range(BOUNDS[-1]) if token != 3]
    for name in inputs.tensors.keys() & contract.tokens.keys():
        if inputs.tensors[name].ndim > contract.tokens[name] and inputs.tensors[name].numel():
            found, *_ = run(contract, form, spoilt(contract, inputs, name, 3, math.nan))
            assert_equal(found[:, others], out[:, others], 1e-12)
