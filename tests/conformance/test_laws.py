"""The laws that every mechanism of the catalogue obeys.

A card whose mathematics cannot keep a law says so in `breaks`, with the reason; that it cannot is tested, too.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.export import Dim

import attensor
from attensor.catalogue import Mechanism, mechanisms
from tests.conformance.cases import HIDDEN, LAWS, SPACE, Case, all_cases, law, name, obey, run

# 1. equals its reference


@law("definition")
@pytest.mark.parametrize("layer_index", [0, 1])
def test_fast_path_equals_the_definition(case: Case, layer_index: int) -> None:
    layer, x = case.layer(layer_index=layer_index), case.hidden_states()
    fast = run(layer, x)
    with attensor.backend("reference"):
        defined = run(layer, x)
    for got, expected in zip(fast, defined, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@law("precision")
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


@law("gradients")
def test_gradcheck(case: Case) -> None:
    space = (5,) if len(SPACE[case.domain]) == 1 else (3, 4)
    x = case.hidden_states(batch=1, space=space).requires_grad_()
    assert torch.autograd.gradcheck(case.layer(), (x,), fast_mode=True)


# 3. causality


@law("causality", causal=True)
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


@law("decoding", causal=True)
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


@law("decoding", causal=True)
def test_a_cache_reorders_its_sequences(case: Case) -> None:
    layer, x = case.layer(), case.hidden_states(batch=3, space=(6,))
    index = torch.tensor([2, 0, 0])
    cache = layer.new_cache(3, 6, dtype=torch.float64)
    layer(x[:, :5], cache=cache)
    cache.reorder(index)
    torch.testing.assert_close(layer(x[index, 5:], cache=cache), layer(x)[index, 5:], rtol=1e-9, atol=1e-9)


# 5. odd sizes and strides


def equals_its_definition(layer: nn.Module, x: Tensor) -> None:
    fast = run(layer, x)
    with attensor.backend("reference"):
        defined = run(layer, x)
    assert fast[0].shape == x.shape
    for got, expected in zip(fast, defined, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@law("other sizes")
@pytest.mark.parametrize("size", ["one", "ragged"])
def test_other_sizes(case: Case, size: str) -> None:
    grid = len(SPACE[case.domain]) == 2
    space = {"one": (1, 1) if grid else (1,), "ragged": (13, 3) if grid else (131,)}[size]
    equals_its_definition(case.layer(), case.hidden_states(space=space))


@law("other batches")
@pytest.mark.parametrize("batch", [0, 1])
def test_other_batches(case: Case, batch: int) -> None:
    equals_its_definition(case.layer(), case.hidden_states(batch=batch))


@law("one head")
def test_one_head(case: Case) -> None:
    equals_its_definition(case.layer(num_heads=1), case.hidden_states())


@law("strides")
def test_strides(case: Case) -> None:
    equals_its_definition(case.layer(), case.hidden_states().transpose(0, 1).contiguous().transpose(0, 1))


# 6. packing (padding goes through packing, see tests/models)


@law("packing", causal=True)
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


@law("batch")
def test_sequences_of_a_batch_do_not_see_each_other(case: Case) -> None:
    layer, x = case.layer(), case.hidden_states(batch=3)
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]), rtol=1e-12, atol=1e-12)


# 7. dtypes, autocast, large inputs


@law("large inputs")
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


@law("autocast")
def test_autocast(case: Case) -> None:
    layer, x = case.layer(dtype=torch.float32), case.hidden_states().float()
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert (out.float() - exact).norm() <= 5e-2 * exact.norm()


# 8. compilation (the cost formula has a file of its own)


@pytest.mark.slow
@law("tracing")
def test_traces_as_one_graph(case: Case) -> None:
    layer, x = case.layer(), case.hidden_states()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for got, expected in zip(run(compiled, x), run(layer, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


FREE = [c for c in all_cases() if c.variant is None]


@pytest.mark.slow
@pytest.mark.parametrize("with_gradients", [False, True], ids=["inference", "gradients"])
@pytest.mark.parametrize("case", FREE, ids=name)
def test_exports_with_free_sizes(case: Case, with_gradients: bool) -> None:
    """One graph for all batches and lengths from 5 to 2048, as torch.export makes it without Dynamo."""
    layer, x = case.layer(), case.hidden_states()
    free = {0: Dim("B", min=1, max=64), **{i: Dim(f"T{i}", min=5, max=2048) for i in range(1, x.ndim - 1)}}
    with torch.set_grad_enabled(with_gradients):
        program = torch.export.export(layer, (x,), dynamic_shapes={"hidden_states": free}, strict=False).module()
        # blocks of 4 x 4 tile neither axis, both, one
        for batch, more in ((3, (4, 4)), (2, (3, 6)), (1, (7, 0))):
            other = case.hidden_states(batch=batch, space=tuple(n + m for n, m in zip(x.shape[1:-1], more)))
            torch.testing.assert_close(program(other), layer(other), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"block_size": 7}, {"block_size": 7, "pattern": "grid"}], ids=str)
def test_a_block_beyond_the_map_leaves_sizes_free(options: dict[str, Any]) -> None:
    """The program is made on one block; gradients of a learned bias pass through it."""
    (case,) = (c for c in all_cases() if c.card.name == "window-grid" and c.variant is None)
    layer, x = case.layer(**options), case.hidden_states()
    free = {0: Dim("B"), 1: Dim("height", min=2), 2: Dim("width", min=2)}
    program = torch.export.export(layer, (x,), dynamic_shapes={"hidden_states": free}, strict=False).module()
    for space in ((5, 3), (9, 14), (2, 21)):
        other = case.hidden_states(batch=3, space=space)
        for got, expected in zip(run(program, other)[:2], run(layer, other)[:2], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [c for c in all_cases() if c.card.name == "sliding-window"], ids=name)
def test_a_window_wider_than_some_lengths_makes_no_graph_for_each(case: Case) -> None:
    layer, graphs = case.layer(window_size=10), CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=graphs, dynamic=True)
    for length in (7, 9, 10, 11, 23):
        x = case.hidden_states(space=(length,))
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-9, atol=1e-9)
    assert graphs.frame_count == 1


# 9. state_dict, copies, moves, seeds


@law("weights")
def test_weights_travel(case: Case, tmp_path: Path) -> None:
    layer, x = case.layer(seed=3), case.hidden_states()
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    other = case.layer(seed=4)
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    for twin in (other, copy.deepcopy(layer), case.layer(seed=3), copy.deepcopy(layer).float().double()):
        tolerance = 1e-4 if twin is not other else 0.0
        torch.testing.assert_close(twin(x), layer(x), rtol=tolerance, atol=tolerance)


@law("meta device")
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


@law("bad input")
def test_bad_input_is_refused_by_name(case: Case) -> None:
    layer, x = case.layer(), case.hidden_states()
    who = type(layer).__name__
    with pytest.raises(ValueError, match=who):
        layer(x[..., :-1])
    with pytest.raises(ValueError, match=who):
        layer(x[0, ..., 0])
    with pytest.raises(ValueError, match=rf"{who}.*{HIDDEN}.*5"):
        case.layer(num_heads=5)


@law("common arguments")
def test_is_a_module_with_the_common_arguments(case: Case) -> None:
    layer = case.layer(dtype=torch.float32)
    assert isinstance(layer, nn.Module)
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
    if case.is_causal:
        assert layer.new_cache(2).length == 0
    elif hasattr(layer, "new_cache"):
        with pytest.raises(ValueError, match=f"{type(layer).__name__}: .*there is no cache"):
            layer.new_cache(2)


# the only excuse


@pytest.mark.parametrize(
    ("card", "called"), [(card, called) for card in mechanisms().values() for called in card.breaks], ids=str
)
def test_a_card_that_says_so_breaks_the_law(card: Mechanism, called: str, tmp_path: Path) -> None:
    assert called in LAWS
    for case in (case for case in all_cases() if case.card is card):
        try:
            obey(case, called, tmp_path)
        except (Exception, pytest.fail.Exception):
            return
    pytest.fail(f"{card.name} keeps the law of {called}: its excuse goes")


@pytest.mark.parametrize("called", ["batch", "weights", "precision", "bad input"])
def test_a_law_is_obeyed_where_there_is_no_excuse(called: str, tmp_path: Path) -> None:
    """`obey` itself: a test without parameters, one with a folder, one with two parameters, one that expects errors."""
    (case,) = (c for c in all_cases() if c.card.name == "rala" and c.variant is None)
    obey(case, called, tmp_path)
