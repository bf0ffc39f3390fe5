"""`linear_attention` in C++: chunks, vectors, turns, packing, strides, dtypes, extremes. What all back-ends do: beside.

New memory is NaN in all of these tests, so that results that are not written show.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from tests.ops.test_linear_attention import DECAYS, assert_same, make, results, weights
from torch import Tensor

from attensor.bench import measure_peak_bytes
from attensor.ops._native.compiler import compiler
from attensor.ops.linear_attention import linear_attention, linear_attention_reference
from attensor.ops.linear_attention.cpp import recurrence as kernels
from attensor.ops.linear_attention.problem import Inputs

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")

DOUBLE, FLOAT, HALF, BFLOAT = torch.float64, torch.float32, torch.float16, torch.bfloat16
Tensors = dict[str, Tensor | None]

in_cpp = partial(linear_attention, backend="cpp")


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def changed(tensors: Tensors, change: Callable[[Tensor], Tensor]) -> Tensors:
    """A leaf of its own in place of each tensor."""
    return {name: None if x is None else change(x.detach()).requires_grad_() for name, x in tensors.items()}


def mild(decay: str, *, rounded_to: torch.dtype = DOUBLE, **options: Any) -> Tensors:
    """As `make`, with gates so near 0 that no token is forgotten: a wrong one shows however far away it is."""
    tensors = make(decay, **options)
    if tensors["log_decay"] is not None:
        tensors["log_decay"].data.mul_(0.02)
    return changed(tensors, lambda x: x.to(rounded_to).to(x.dtype))


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


# equal to the definition


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 15, 16, 17, 31, 33, 65, 127, 128, 129, 300])
def test_all_chunk_sizes_equal_the_recurrence(decay: str, tokens: int) -> None:
    tensors = mild(decay, batch=1, tokens=tokens, heads=4, key_heads=2, decay_heads=4)
    expected = results(linear_attention_reference, tensors)
    for chunk_size in (1, 2, 16, 128, None):
        assert_same(results(in_cpp, tensors, chunk_size=chunk_size), expected)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(
    ("key_dim", "value_dim"),
    [(1, 1), (1, 7), (5, 1), (13, 11), (12, 20), (8, 24), (40, 8), (16, 48), (64, 17), (67, 71), (96, 80)],
)
def test_all_widths_equal_the_recurrence(decay: str, key_dim: int, value_dim: int) -> None:
    """Less than a vector, whole vectors, and more; float32 has twice as many in one. Heads share keys and decays."""
    sizes = {"heads": 4, "key_heads": 2, "decay_heads": 2, "key_dim": key_dim, "value_dim": value_dim}
    tensors = mild(decay, rounded_to=FLOAT, batch=1, tokens=75, **sizes)
    expected = results(linear_attention_reference, tensors)
    assert_same(results(in_cpp, tensors), expected)
    assert_same(results(in_cpp, changed(tensors, Tensor.float)), expected, 2e-6)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("chunk_size", "segment"), [(16, 1), (16, 3), (8, 7), (32, 40)])
def test_segments_and_turns_equal_the_recurrence(
    decay: str, chunk_size: int, segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads take turns every 256 tokens, rounded up to segments; the last of each is not full."""
    monkeypatch.setattr(kernels, "_segment_size", lambda *_: segment)
    tensors = mild(decay, batch=1, tokens=530, heads=3, key_heads=3, decay_heads=3)
    expected = results(linear_attention_reference, tensors)
    assert_same(results(in_cpp, tensors, chunk_size=chunk_size), expected)


@pytest.mark.parametrize("dtype", [BFLOAT, FLOAT, DOUBLE], ids=str)
@pytest.mark.parametrize("key_dim", [1, 32, 64, 256])
@pytest.mark.parametrize("value_dim", [1, 64, 65, 512])
@pytest.mark.parametrize("chunk_size", [4, 32, 64])
def test_kept_states_are_no_larger_than_q(dtype: torch.dtype, key_dim: int, value_dim: int, chunk_size: int) -> None:
    tokens = 64 * 512
    q, v = (torch.empty(1, tokens, 1, size, dtype=dtype, device="meta") for size in (key_dim, value_dim))
    inputs = Inputs(q, q, v, None, None, None)
    segment = kernels._segment_size(inputs, chunk_size)
    kept = inputs.new_states(kernels._kept_rows(inputs, chunk_size))
    assert kept[1:].numel() <= q.numel()  # one more than whole segments
    # those in between fit a cache, unless there have to be so many
    needed = segment * chunk_size < value_dim + chunk_size
    assert needed or segment * kept[0].nbytes <= 2**17


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("packed", [False, True])
def test_without_an_initial_state_it_begins_with_zeros(decay: str, packed: bool) -> None:
    """Each head and sequence does, not only the first one that uses the memory."""
    tensors = mild(decay, batch=1 if packed else 3, tokens=23, rows=2 if packed else None)
    packing = torch.tensor([0, 11, 23]) if packed else None
    tensors["initial_state"].data.zero_()
    expected = results(in_cpp, tensors, chunk_size=4, cu_seqlens=packing)
    del tensors["initial_state"]
    found = results(in_cpp, tensors, chunk_size=4, cu_seqlens=packing)
    assert_equal(found, {name: expected[name] for name in found})


@pytest.mark.parametrize("decay", ["constant", "channel"])
def test_large_results_equal_those_of_torch(decay: str) -> None:
    """More than 4 MiB, for which large pages are asked."""
    sizes = {"heads": 5, "key_heads": 5, "decay_heads": 5, "key_dim": 48, "value_dim": 64}
    exact = mild(decay, rounded_to=FLOAT, batch=1, tokens=4200, **sizes)
    found = results(in_cpp, changed(exact, Tensor.float))
    assert found["out"].nbytes > 2**22
    assert_same(found, results(partial(linear_attention, backend="torch"), exact), 5e-6)


# packed sequences


def separately(bounds: list[int], tensors: Tensors) -> tuple[Tensor, Tensor]:
    """The definition for each sequence alone; zeros where there is none."""
    empty = tensors["v"].new_zeros(*tensors["q"].shape[:3], tensors["v"].shape[3])
    outs, states = [empty[:, : bounds[0]]], []
    for n, (start, stop) in enumerate(itertools.pairwise(bounds)):
        alone = {name: x if x is None or x.ndim == 1 else x[:, start:stop] for name, x in tensors.items()}
        alone["initial_state"] = tensors["initial_state"][n : n + 1]
        out, state = linear_attention_reference(**alone, output_final_state=True)
        outs.append(out)
        states.append(state)
    return torch.cat([*outs, empty[:, bounds[-1] :]], 1), torch.cat(states)


@pytest.mark.usefixtures("unread_bounds")
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("value_dim", [7, 24])
def test_packed_sequences_are_separate_ones(decay: str, value_dim: int) -> None:
    """Some are empty, some have several segments; what no sequence owns gives and gets nothing, not even a gradient."""
    bounds = [5, 5, 9, 10, 10, 87, 113]
    tensors = mild(decay, batch=1, tokens=117, rows=6, key_dim=8, value_dim=value_dim)
    expected = results(lambda **given: separately(bounds, {name: given[name] for name in tensors}), tensors)
    for name in ("q", "k", "v", "log_decay"):
        if tensors[name] is not None and tensors[name].ndim > 1:
            tensors[name].data[:, :5] = tensors[name].data[:, 113:] = torch.nan
    for dtype in (torch.int32, torch.int64):
        packing = torch.tensor(bounds, dtype=dtype)
        assert_same(results(in_cpp, tensors, cu_seqlens=packing, chunk_size=4), expected)


@pytest.mark.usefixtures("unread_bounds")
@pytest.mark.parametrize(
    ("bounds", "meant"),
    [
        ([-7, 11, 11, 2**40], [0, 11, 11, 19]),
        ([50, 60, 70, 80], [19, 19, 19, 19]),
        ([-(2**40), -9, -4, -4], [0, 0, 0, 0]),
        ([3, 12, 5, 5], [3, 12, 12, 12]),
    ],
    ids=str,
)
def test_boundaries_out_of_range_are_moved_into_it(bounds: list[int], meant: list[int]) -> None:
    tensors = mild("channel", batch=1, tokens=19, rows=3)
    found, expected = (results(in_cpp, tensors, cu_seqlens=torch.tensor(x), chunk_size=2) for x in (bounds, meant))
    assert_equal(found, expected)


@pytest.mark.usefixtures("unread_bounds")
def test_there_may_be_no_sequence() -> None:
    found = results(in_cpp, make("channel", batch=1, tokens=19, rows=0), cu_seqlens=torch.tensor([0]))
    assert found["state"].shape == (0, 6, 5, 7)
    assert all(x.eq(0).all() for x in found.values())


# memory


@pytest.mark.parametrize("value_dim", [1, 7])
def test_an_expanded_gradient_is_like_a_copy(value_dim: int) -> None:
    tensors = make("channel", tokens=19, value_dim=value_dim)
    pair = in_cpp(**tensors, output_final_state=True)
    of_sum = torch.autograd.grad(sum(x.sum() for x in pair), list(tensors.values()), retain_graph=True)
    of_copies = torch.autograd.grad(pair, list(tensors.values()), [torch.ones_like(x) for x in pair])
    assert all(map(torch.equal, of_sum, of_copies))


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [DOUBLE, FLOAT, BFLOAT], ids=str)
def test_nothing_given_is_written_to(decay: str, dtype: torch.dtype) -> None:
    tensors = changed(make(decay, tokens=45, key_dim=8, value_dim=16), lambda x: x.to(dtype))
    inputs = [x for x in tensors.values() if x is not None]
    pair = in_cpp(**tensors, output_final_state=True)
    given = [*inputs, *pair, *map(weights, pair)]
    before = [x.detach().clone() for x in given]
    torch.autograd.grad(pair, inputs, given[-2:])
    in_cpp(**tensors)
    assert all(map(torch.equal, given, before))


@pytest.mark.parametrize("decay", ["constant", "channel"])
def test_memory_is_little_more_than_the_results(decay: str) -> None:
    """Measured: 1.4 and 1.8 times the size of q, k, v, of which results are 1.3 and 1.7 (torch: 1.8 and 2.5)."""
    sizes = {"heads": 2, "key_heads": 2, "decay_heads": 2, "key_dim": 64, "value_dim": 64}
    tensors = make(decay, batch=1, tokens=16384, dtype=FLOAT, **sizes)
    inputs, grad = [x for x in tensors.values() if x is not None], torch.ones(1, 16384, 2, 64)
    peaks = [measure_peak_bytes(lambda: torch.autograd.grad(in_cpp(**tensors)[0], inputs, grad)) for _ in range(2)]
    sizes_of = {name: x.nbytes for name, x in tensors.items() if x is not None}
    # the output and the gradients, and as much as q; the first call may load the library
    assert peaks[1] < sizes_of["v"] + sum(sizes_of.values()) + sizes_of["q"]


# numbers


MIXED = {  # dtypes of q, k, v, the decay and the initial state
    "float32 decays": (BFLOAT, BFLOAT, BFLOAT, FLOAT, FLOAT),
    "float32 values": (BFLOAT, BFLOAT, FLOAT, BFLOAT, FLOAT),
    "float32 queries": (FLOAT, BFLOAT, BFLOAT, FLOAT, BFLOAT),
    "halves": (HALF, BFLOAT, FLOAT, HALF, HALF),
    "float64 keys": (FLOAT, DOUBLE, FLOAT, DOUBLE, DOUBLE),
    "float64 values": (FLOAT, HALF, DOUBLE, FLOAT, FLOAT),
}


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("groups", [1, 2])
def test_mixed_dtypes_cost_one_rounding_each(decay: str, name: str, groups: int) -> None:
    """A result has its input's dtype; its error is that of one rounding to it, and what the working precision costs.

    Measured: 0.25 units of the former, 3 of the latter; 0.6 and 22 for decays, whose gradients are sums of differences.
    """
    tensors = mild(decay, tokens=53, heads=4, key_heads=4 // groups, decay_heads=4 // groups)
    mixed = {n: x if x is None else x.detach().to(dtype) for (n, x), dtype in zip(tensors.items(), MIXED[name])}
    mixed = changed(mixed, lambda x: x)
    with torch.autocast("cpu", BFLOAT):
        pair = in_cpp(**mixed, output_final_state=True, chunk_size=16)
    inputs = {n: x for n, x in mixed.items() if x is not None}
    found = [*pair, *torch.autograd.grad(pair, list(inputs.values()), [weights(x) for x in pair])]
    exact = changed(mixed, Tensor.double)
    pair = linear_attention_reference(**exact, output_final_state=True)
    grads = [weights(x).double() for x in found[:2]]
    expected = [*pair, *torch.autograd.grad(pair, [exact[n] for n in inputs], grads)]
    working = torch.promote_types(torch.promote_types(mixed["q"].dtype, mixed["v"].dtype), FLOAT)
    dtypes = [mixed["v"].dtype, working, *(x.dtype for x in inputs.values())]
    for what, dtype, mine, other in zip(("out", "state", *inputs), dtypes, found, expected, strict=True):
        assert mine.dtype == dtype, what
        bound = 0.7 * torch.finfo(dtype).eps + (40 if what == "log_decay" else 5) * torch.finfo(working).eps
        assert (mine.double() - other).norm() <= bound * other.norm(), what


@pytest.mark.parametrize("decay", ["none", "constant", "scalar", "channel"])
@pytest.mark.parametrize("key_heads", [3, 6])
def test_bfloat16_is_float32_rounded_at_the_end(decay: str, key_heads: int) -> None:
    """To nearest, ties to even: without decays all results are whole numbers, many of them half way between two."""
    tensors = mild(decay, tokens=45, key_heads=key_heads, decay_heads=key_heads)
    for name in ("q", "k", "v", "initial_state"):
        tensors[name].data.mul_(3).round_()
    grads = [torch.randint(-3, 4, (2, 45, 6, 7)), torch.randint(-3, 4, (2, 6, 5, 7))]
    low, found = changed(tensors, Tensor.bfloat16), []
    for given, dtype in ((low, BFLOAT), (changed(low, Tensor.float), FLOAT)):
        pair = in_cpp(**given, output_final_state=True, chunk_size=16, scale=1.0)
        inputs = [x for x in given.values() if x is not None]
        found.append([*pair, *torch.autograd.grad(pair, inputs, [grads[0].to(dtype), grads[1].float()])])
    for mine, other in zip(*found, strict=True):
        assert torch.equal(mine, other.to(mine.dtype))


@pytest.mark.parametrize("bits", [-1, 2**31 - 1])
def test_any_nan_is_one_in_bfloat16(bits: int) -> None:
    """Rounded like a number, these would be 0 and -0."""
    state = torch.full((2, 6, 5, 7), bits, dtype=torch.int32).view(FLOAT)
    tensors = changed(make("none", tokens=19, key_heads=6), Tensor.bfloat16) | {"initial_state": state}
    assert in_cpp(**tensors)[0].isnan().all()


EXTREMES = [0.0, -0.0, -100.0, -1e4, -torch.inf]


@pytest.mark.parametrize("decay", ["scalar", "channel"])
@pytest.mark.parametrize("gate", EXTREMES)
@pytest.mark.parametrize("where", [[0, 1, 15, 16, 17, 31, 32, 63, 64, 127, 128, 149], list(range(150))], ids=len)
def test_extreme_gates_at_any_border(decay: str, gate: float, where: list[int]) -> None:
    tensors = mild(decay, rounded_to=FLOAT, batch=1, tokens=150)
    tensors["log_decay"].data[:, where] = gate
    expected = results(linear_attention_reference, tensors)
    for chunk_size in (32, 128):
        assert_same(results(in_cpp, tensors, chunk_size=chunk_size), expected)
        assert_same(results(in_cpp, changed(tensors, Tensor.float), chunk_size=chunk_size), expected, 1e-5)


def test_extreme_constant_decays() -> None:
    tensors = mild("constant", tokens=70)
    tensors["log_decay"].data[:] = torch.tensor([*EXTREMES, -1e-3])
    assert_same(results(in_cpp, tensors), results(linear_attention_reference, tensors))


@pytest.mark.parametrize("decay", ["constant", "scalar"])
@pytest.mark.parametrize(("dtype", "digits"), [(DOUBLE, 1e-12), (FLOAT, 1e-5)], ids=str)
@pytest.mark.parametrize("gate", [-30.0, -5.0, -0.01])
def test_gradients_of_strong_decays_keep_their_digits(
    decay: str, dtype: torch.dtype, digits: float, gate: float
) -> None:
    """However small they are: what decays is not found as the difference of two numbers that do not."""
    tensors = mild(decay, rounded_to=dtype, tokens=70)
    tensors["log_decay"].data[:] = gate
    expected = results(linear_attention_reference, tensors)["gradient of log_decay"]
    for chunk_size in (4, 32, 64):
        found = results(in_cpp, changed(tensors, lambda x: x.to(dtype)), chunk_size=chunk_size)["gradient of log_decay"]
        assert (found - expected).abs().max() <= digits * expected.abs().max()


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT], ids=str)
def test_large_inputs_have_the_digits_of_small_ones(decay: str, dtype: torch.dtype) -> None:
    """Queries, keys and values 2^13, 2^14, 2^15 times as large: the same results times other powers of two."""
    small = changed(mild(decay, tokens=45), lambda x: x.to(dtype))
    powers = {"q": 13, "k": 14, "v": 15, "log_decay": 0, "initial_state": 29}
    large = {n: x if x is None else (x.detach() * 2.0 ** powers[n]).requires_grad_() for n, x in small.items()}
    pairs = [in_cpp(**tensors, output_final_state=True) for tensors in (small, large)]
    names = [name for name, x in small.items() if x is not None]
    for before, after, power in zip(*pairs, (42, 29)):
        assert torch.equal(after, before * 2.0**power)
        grads = [
            torch.autograd.grad(x, [tensors[n] for n in names], weights(x), retain_graph=True, materialize_grads=True)
            for x, tensors in ((before, small), (after, large))
        ]
        for name, mine, other in zip(names, *grads):
            assert torch.equal(other, mine * 2.0 ** (power - powers[name])), name


@pytest.mark.parametrize(
    ("decay", "name"),
    [(decay, name) for decay in DECAYS for name in "qkv"] + [("scalar", "log_decay"), ("channel", "log_decay")],
)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize(("tokens", "chunk_size"), [(37, None), (128, 128), (20, 2)])
def test_what_comes_before_a_bad_token_is_the_same(
    decay: str, name: str, bad: float, tokens: int, chunk_size: int | None
) -> None:
    tensors = {n: x if x is None else x.detach() for n, x in make(decay, tokens=tokens).items()}
    good, _ = in_cpp(**tensors, chunk_size=chunk_size)
    tensors[name] = tensors[name].clone()
    tensors[name][:, -1] = bad
    found, _ = in_cpp(**tensors, chunk_size=chunk_size)
    assert torch.equal(found[:, :-1], good[:, :-1])
    assert not found[:, -1].isfinite().any()


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [DOUBLE, FLOAT], ids=str)
def test_nothing_of_a_bad_head_or_sequence_stays_in_memory(decay: str, dtype: torch.dtype) -> None:
    """Head 1 and sequence 1 are NaN: the others, worked on before and after, have the same bits as without."""
    tensors = changed(mild(decay, batch=3, tokens=61, key_heads=6), lambda x: x.to(dtype))
    good, bad = results(in_cpp, tensors, chunk_size=8), changed(tensors, Tensor.clone)
    for name in ("q", "k", "v", "initial_state"):
        bad[name].data[1] = torch.nan
        bad[name].data.select(1 if name == "initial_state" else 2, 1)[:] = torch.nan
    found = results(in_cpp, bad, chunk_size=8)
    for name, value in good.items():
        if value.ndim > 1:  # the gradient of a constant decay is a sum over sequences
            fine = ([[0], [2]], slice(None), [0, 2, 3, 4, 5]) if value.shape[1] == 61 else ([[0], [2]], [0, 2, 3, 4, 5])
            assert torch.equal(found[name][fine], value[fine]), name
    assert_equal(results(in_cpp, tensors, chunk_size=8), good)


def test_exponentials_of_float32_are_good_to_a_rounding() -> None:
    """The final state of one token, exp(log_decay); measured: 7e-8 from -20 on, 8e-8 from -87 on, bias 1e-9."""
    gates = torch.cat([-torch.logspace(-8, 1, 5000), torch.linspace(-87, 0, 50000)])
    one = torch.ones(1, 1, 1, len(gates))
    _, state = in_cpp(
        one, 0 * one, torch.ones(1, 1, 1, 1), log_decay=gates * one, initial_state=one.mT, output_final_state=True
    )
    error = state.flatten() / gates.double().exp() - 1
    assert error.abs().max() < 1e-7
    assert error.mean().abs() < 1e-8


@pytest.mark.parametrize("gate", [-87.00001, -88.0, -104.0, -1e30, -torch.inf, 0.0, -0.0, -1e-30, torch.nan])
def test_exponentials_of_float32_at_the_ends(gate: float) -> None:
    """0 where float32 has no normal number left, exactly 1 at 0."""
    one = torch.ones(1, 1, 1, 17)
    _, state = in_cpp(
        one, 0 * one, torch.ones(1, 1, 1, 1), log_decay=gate * one, initial_state=one.mT, output_final_state=True
    )
    expected = torch.nan if gate != gate else float(gate > -87)
    torch.testing.assert_close(state, torch.full_like(state, expected), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("decay", DECAYS)
def test_float32_keeps_its_digits_over_a_thousand_tokens(decay: str) -> None:
    """Gates of tokens from -1e-6 to -100; measured: 4e-7 for outputs, 7e-7 for states and gradients."""
    exact = mild(decay, rounded_to=FLOAT, batch=1, tokens=1000, heads=2, key_heads=2, decay_heads=2)
    if decay in ("scalar", "channel"):
        exact["log_decay"].data = -(10.0 ** (-400 * exact["log_decay"].data - 6)).float().double()
    found = results(in_cpp, changed(exact, Tensor.float))
    for name, value in results(linear_attention_reference, exact).items():
        assert (found[name] - value).norm() < 1e-6 * value.norm(), name


@pytest.mark.parametrize("growth", [math.inf, 200.0, 89.0])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_growth_beyond_a_float_is_not_finite_where_it_is_not_in_the_definition(growth: float, place: int) -> None:
    """No decay, and it must not look like one: infinities once ended at exp(88)."""
    q, k, v = (torch.randn(1, 7, 2, 16) for _ in range(3))
    decay = -torch.rand(1, 7, 2, 16)
    decay[0, place, 0, 3] = growth
    given = {"log_decay": decay, "initial_state": torch.randn(1, 2, 16, 16), "output_final_state": True}
    for found, right in zip(in_cpp(q, k, v, **given), linear_attention_reference(q, k, v, **given)):
        assert not right.isfinite().all()
        assert torch.equal(found.isfinite(), right.isfinite())
