"""The ten laws that every mechanism of the catalogue obeys (DESIGN, "What every mechanism must pass")."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import attensor
from tests.conformance.cases import HIDDEN, SPACE, Case, all_cases, name, run

EVERY = pytest.mark.parametrize("case", all_cases(), ids=name)
CAUSAL = pytest.mark.parametrize("case", [c for c in all_cases() if c.is_causal], ids=name)


# 1. equals its reference


@EVERY
@pytest.mark.parametrize("layer_index", [0, 1])
def test_fast_path_equals_the_definition(case: Case, layer_index: int) -> None:
    layer, x = case.layer(layer_index=layer_index), case.hidden_states()
    fast = run(layer, x)
    with attensor.backend("reference"):
        defined = run(layer, x)
    for got, expected in zip(fast, defined, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@EVERY
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str)
def test_lower_precision_stays_within_its_error(case: Case, dtype: torch.dtype, bound: float) -> None:
    """Relative root-mean-square error of output and input gradient against float64."""
    layer, x = case.layer(), case.hidden_states()
    layer = layer.to(dtype).double()  # the same rounded weights on both sides: only the computation is judged
    x = x.to(dtype).double()
    exact = run(layer, x)[:2]
    rounded = run(copy.deepcopy(layer).to(dtype), x.to(dtype))[:2]
    for got, expected in zip(rounded, exact, strict=True):
        assert got.dtype == dtype
        assert (got.double() - expected).norm() <= bound * expected.norm()


# 2. gradients


@EVERY
def test_gradcheck(case: Case) -> None:
    space = (5,) if len(SPACE[case.domain]) == 1 else (3, 4)
    x = case.hidden_states(batch=1, space=space).requires_grad_()
    assert torch.autograd.gradcheck(case.layer(), (x,), fast_mode=True)


# 3. causality


@CAUSAL
@pytest.mark.parametrize("length", [7, 70])
def test_the_future_does_not_leak(case: Case, length: int) -> None:
    layer, x = case.layer(), case.hidden_states(space=(length,))
    before = layer(x)
    for changed in (length - 1, length // 2, 1):
        perturbed = x.clone()
        perturbed[:, changed] += 3.0
        after = layer(perturbed)
        assert torch.equal(after[:, :changed], before[:, :changed])
        assert not torch.equal(after[:, changed:], before[:, changed:])


# 4. prefill, decode, any split, export and import


@CAUSAL
@pytest.mark.parametrize("pieces", [(1,) * 11, (11,), (4, 1, 1, 5), (1, 10)], ids=str)
def test_any_split_gives_the_whole(case: Case, pieces: tuple[int, ...]) -> None:
    layer, x = case.layer(), case.hidden_states(space=(11,))
    cache = layer.new_cache(2, 11, dtype=torch.float64)
    outs = []
    for piece in x.split(list(pieces), dim=1):
        exported = {k: v.clone() for k, v in cache.state_dict().items()}
        cache = layer.new_cache(2, 11, dtype=torch.float64)
        cache.load_state_dict(exported)
        outs.append(layer(piece, cache=cache))
    # the state is float32 at least, by convention; float64 inputs keep float64
    torch.testing.assert_close(torch.cat(outs, 1), layer(x), rtol=1e-9, atol=1e-9)
    assert cache.length == 11
    assert cache.nbytes > 0


@CAUSAL
def test_a_cache_reorders_its_sequences(case: Case) -> None:
    layer, x = case.layer(), case.hidden_states(batch=3, space=(6,))
    index = torch.tensor([2, 0, 0])
    cache = layer.new_cache(3, 6, dtype=torch.float64)
    layer(x[:, :5], cache=cache)
    cache.reorder(index)
    torch.testing.assert_close(layer(x[index, 5:], cache=cache), layer(x)[index, 5:], rtol=1e-9, atol=1e-9)


# 5. odd sizes and strides


@EVERY
@pytest.mark.parametrize("size", ["one", "ragged", "batch of one", "empty batch", "one head", "strided"])
def test_odd_sizes(case: Case, size: str) -> None:
    grid = len(SPACE[case.domain]) == 2
    space = {"one": (1, 1) if grid else (1,), "ragged": (13, 3) if grid else (131,)}.get(size)
    batch = {"batch of one": 1, "empty batch": 0}.get(size, 2)
    layer = case.layer(num_heads=1) if size == "one head" else case.layer()
    x = case.hidden_states(batch=batch, space=space)
    fast = run(layer, x.transpose(0, 1).contiguous().transpose(0, 1) if size == "strided" else x)
    with attensor.backend("reference"):
        defined = run(layer, x)
    assert fast[0].shape == x.shape
    for got, expected in zip(fast, defined, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


# 6. packing (padding goes through packing, see tests/models)


@pytest.mark.parametrize("case", [c for c in all_cases() if c.is_causal], ids=name)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_packed_sequences_do_not_see_each_other(case: Case, index_dtype: torch.dtype) -> None:
    layer = case.layer()
    lengths = [5, 1, 70, 3]
    sequences = [case.hidden_states(batch=1, space=(n,), seed=n) for n in lengths]
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=index_dtype)
    packed = layer(torch.cat(sequences, 1), cu_seqlens=offsets)
    apart = torch.cat([layer(s) for s in sequences], 1)
    torch.testing.assert_close(packed, apart, rtol=1e-9, atol=1e-9)
    assert packed.shape == (1, sum(lengths), HIDDEN)


@EVERY
def test_sequences_of_a_batch_do_not_see_each_other(case: Case) -> None:
    layer, x = case.layer(), case.hidden_states(batch=3)
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]), rtol=1e-12, atol=1e-12)


# 7. dtypes, autocast, large inputs


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_large_inputs_stay_finite(case: Case, dtype: torch.dtype) -> None:
    layer, x = case.layer(dtype=dtype), 1e4 * case.hidden_states()
    if dtype == torch.float16:
        x = x / 1e3  # the projections of 1e4 leave float16's range before any attention is computed
    out, *grads = run(layer, x.to(dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()
    if dtype != torch.float16:
        assert grads[0].isfinite().all()


@EVERY
def test_autocast(case: Case) -> None:
    layer, x = case.layer(dtype=torch.float32), case.hidden_states().float()
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert (out.float() - exact).norm() <= 5e-2 * exact.norm()


# 8. compilation (the cost formula has a file of its own)


# a variant traces as its card does, and tracing takes seconds
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c.variant is not None)) for c in all_cases()], ids=name
)
def test_traces_as_one_graph(case: Case) -> None:
    layer, x = case.layer(), case.hidden_states()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for got, expected in zip(run(compiled, x), run(layer, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


# 9. state_dict, copies, moves, seeds


@EVERY
def test_weights_travel(case: Case, tmp_path: Path) -> None:
    layer, x = case.layer(seed=3), case.hidden_states()
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    other = case.layer(seed=4)
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    for twin in (other, copy.deepcopy(layer), case.layer(seed=3), copy.deepcopy(layer).float().double()):
        tolerance = 1e-4 if twin is not other else 0.0
        torch.testing.assert_close(twin(x), layer(x), rtol=tolerance, atol=tolerance)


@EVERY
def test_builds_without_memory(case: Case) -> None:
    """On the meta device, for counting parameters and for loaders that fill the weights later."""
    meta, real = case.layer(device="meta"), case.layer()
    assert {k: v.shape for k, v in meta.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
    filled = meta.to_empty(device="cpu")
    for module in filled.modules():
        if isinstance(getattr(type(module), "reset_parameters", None), object) and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    filled.load_state_dict(real.state_dict())
    x = case.hidden_states()
    torch.testing.assert_close(filled(x), real(x), rtol=0, atol=0)


# 10. bad input


@EVERY
def test_bad_input_is_refused_by_name(case: Case) -> None:
    layer, x = case.layer(), case.hidden_states()
    who = type(layer).__name__
    with pytest.raises(ValueError, match=who):
        layer(x[..., :-1])
    with pytest.raises(ValueError, match=who):
        layer(x[0, ..., 0])
    with pytest.raises(ValueError, match=rf"{who}.*{HIDDEN}.*5"):
        case.layer(num_heads=5)


@EVERY
def test_is_a_module_with_the_common_arguments(case: Case) -> None:
    layer = case.layer(dtype=torch.float32)
    assert isinstance(layer, nn.Module)
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
    assert hasattr(layer, "new_cache") == case.is_causal or len(case.card.domain) > 1
