"""neighborhood_attention query by query, any tiling, short packed sequences, memory, its refusals."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode

import attensor
from attensor.errors import ShapeError
from attensor.ops import (
    halo_attention,
    merge_attention,
    neighborhood_attention,
    neighborhood_attention_reference,
    softmax_attention,
)
from attensor.ops.neighborhood_attention.neighborhood import axes_of

function = importlib.import_module("attensor.ops.neighborhood_attention.function")
line = importlib.import_module("attensor.ops.neighborhood_attention.line")
scores = importlib.import_module("attensor.ops.neighborhood_attention.scores")
tiles = importlib.import_module("attensor.ops.neighborhood_attention.tiles")


@pytest.fixture(autouse=True, scope="module", params=["cpp", "torch"])
def _form(request: pytest.FixtureRequest) -> Iterator[None]:
    with attensor.backend(request.param):
        yield


def make(space, *, batch=2, heads=4, kv_heads=2, key_dim=3, value_dim=5, dtype=torch.float64):
    sizes = ((heads, key_dim), (kv_heads, key_dim), (kv_heads, value_dim))
    return [torch.randn(batch, *space, *size, dtype=dtype, requires_grad=True) for size in sizes]


def weigh(x):
    return (x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum()


def with_gradients(inputs, function=neighborhood_attention, *, weighs_lse=True, **options):
    """out, lse and the gradients of everything; inputs beyond q, k, v are relative_bias, additional keys and values."""
    names = ("relative_bias", "additional_keys", "additional_values")
    extra = {name: t for name, t in zip(names, inputs[3:]) if t is not None}
    result = function(*inputs[:3], **extra, return_lse=True, **options)
    present = [t for t in inputs if t is not None]
    loss = weigh(result[0]) + (weigh(result[1]) if weighs_lse else 0.0)
    return [*result, *torch.autograd.grad(loss, present)]


def sees(i, j, n, window, dilation, stride, is_causal, is_cut):
    """Section 3 of the sheet, one query and one key of one axis, in plain Python."""
    group, place = i % dilation, i // dilation
    if j % dilation != group:
        return False
    size = -(-(n - group) // dilation)
    if is_causal:
        leader = min(place // stride * stride + stride - 1, size - 1)
        return max(leader - window + 1, 0) <= j // dilation <= place
    if is_cut:
        return 0 <= j // dilation - (place // stride * stride + stride // 2 - window // 2) < window
    leader = min(place // stride * stride + stride // 2, size - 1)
    first = min(max(leader - window // 2, 0), size - window)
    return first <= j // dilation < first + window


@pytest.mark.parametrize(
    ("space", "window", "dilation", "stride", "is_causal", "border"),
    [
        ((11,), (4,), (1,), (1,), (False,), "shift"),
        ((11,), (3,), (3,), (2,), (False,), "shift"),
        ((13,), (4,), (3,), (3,), (True,), "shift"),
        ((5, 7), (3, 2), (1, 3), (2, 1), (False, True), "shift"),
        ((3, 5, 4), (1, 4, 2), (2, 1, 2), (1, 3, 1), (True, False, False), "shift"),
        ((11,), (4,), (3,), (3,), (False,), "truncate"),
        ((5, 7), (9, 3), (1, 2), (4, 1), (False, True), "truncate"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_equals_the_sheet_one_query_at_a_time(backend, space, window, dilation, stride, is_causal, border):
    """out and lse, and the gradients of everything: the keys that a query sees are listed for it, nothing is masked."""
    inputs = make(space, batch=1, heads=2, kv_heads=1)
    sizes = ([2, *(2 * w - 1 for w in window)], [1, 3, 1, 3], [1, 3, 1, 5])
    inputs += [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    options = {"window_size": window, "dilation": dilation, "stride": stride, "is_causal": is_causal, "border": border}
    found = with_gradients(inputs, scale=0.4, backend=backend, **options)
    q, k, v, bias, more_k, more_v = inputs
    axes = list(zip(space, window, dilation, stride, is_causal, [border == "truncate"] * len(space)))
    tokens = list(itertools.product(*map(range, space)))
    outs, lses = [], []
    for i in tokens:
        seen = [j for j in tokens if all(sees(a, b, *axis) for a, b, axis in zip(i, j, axes))]
        keys, values = (torch.stack([x[0, *j, 0] for j in seen]) for x in (k, v))
        keys, values = torch.cat([keys, more_k[0, :, 0]]), torch.cat([values, more_v[0, :, 0]])
        for h in range(2):
            steps = [tuple(b // d - a // d + w - 1 for a, b, d, w in zip(i, j, dilation, window)) for j in seen]
            added = torch.stack([bias[h, *step] for step in steps] + [bias.new_zeros(())] * 3)
            scores = 0.4 * keys @ q[0, *i, h] + added
            outs.append(scores.softmax(0) @ values)
            lses.append(scores.logsumexp(0))
    out, lse = torch.stack(outs).view(1, *space, 2, 5), torch.stack(lses).view(1, *space, 2)
    expected = [out, lse, *torch.autograd.grad(weigh(out) + weigh(lse), inputs)]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@st.composite
def problems(draw):
    rank = draw(st.integers(1, 3))
    space = [draw(st.integers(1, {1: 300, 2: 27, 3: 9}[rank])) for _ in range(rank)]
    dilation = [draw(st.integers(1, max(1, min(4, n // 2)))) for n in space]
    window = [draw(st.integers(1, min(n // d, 40))) for n, d in zip(space, dilation)]
    stride = [draw(st.integers(1, min(w, 5))) for w in window]
    is_causal = [draw(st.booleans()) for _ in space]
    border = draw(st.sampled_from(["shift", "shift", "truncate"]))
    if border == "truncate":
        window = [w + draw(st.sampled_from([0, 0, 7])) for w in window]
    heads, kv_heads = draw(st.sampled_from([(2, 2), (4, 2), (3, 1)]))
    shape = {"batch": draw(st.integers(1, 2)), "heads": heads, "kv_heads": kv_heads}
    shape["value_dim"] = draw(st.sampled_from([3, 5]))  # 3 is the width of keys, which fused kernels want
    options = {"window_size": window, "dilation": dilation, "stride": stride, "is_causal": is_causal}
    limit = draw(st.sampled_from([1, 3000, 2**19]))
    tile = draw(st.sampled_from([{1: 64, 2: 8, 3: 4}, {1: 5, 2: 3, 3: 2}]))
    options = {name: tuple(value) for name, value in options.items()} | {"border": border}
    is_whole = [draw(st.sampled_from([False, False, True])) for _ in ("products", "fused")]
    tile = tile, draw(st.sampled_from([1, 3, 32, 300]))
    return space, shape, options, limit, tile, is_whole, [draw(st.booleans()) for _ in ("bias", "keys", "lse")]


@settings(max_examples=80)
@given(problems())
def test_tiles_equal_the_definition(problem):
    """Any grid, window, dilation, stride and causality; tiles large and small, in pieces of any size; all gradients."""
    space, shape, options, limit, (tile, least), is_whole, (has_bias, has_keys, weighs_lse) = problem
    torch.manual_seed(0)
    table = [shape["heads"], *(2 * w - 1 for w in options["window_size"])]
    extra = [[shape["batch"], 2, shape["kv_heads"], size] for size in (3, shape["value_dim"])]
    more = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in (table, *extra)]
    given = [x if has else None for x, has in zip(more, (has_bias, has_keys, has_keys))]
    inputs, options = [*make(space, **shape), *given], {**options, "weighs_lse": weighs_lse}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "_SCORES", limit)
        patch.setattr(tiles, "_TILE", tile)
        patch.setattr(line, "_LEAST", least)
        patch.setattr(line, "_cheapest", line._cheapest.__wrapped__)  # what was kept is of another tile
        patch.setattr(line, "costs_less_at_once", lambda *sizes, is_fused: least < 300)
        patch.setattr(scores, "costs_less_at_once", lambda *sizes, is_fused: is_whole[is_fused])
        fast = with_gradients(inputs, **options)
    slow = with_gradients(inputs, neighborhood_attention_reference, **options)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-10)


LINES = [
    (24, 4, {"window_size": 3}),
    (60, 5, {"window_size": 7, "stride": 2}),
    (96, 3, {"window_size": 31}),
    (60, 3, {"window_size": 8, "is_causal": True}),
    (60, 4, {"window_size": 9, "border": "truncate"}),
    (59, 1, {"window_size": 5}),
]


@pytest.mark.parametrize(("tokens", "tiles", "options"), LINES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_line_in_one_call_equals_the_definition(batch, tokens, tiles, options, monkeypatch):
    """Boxes of keys overlap, by more than one where windows are long; out, lse and all gradients."""
    monkeypatch.setattr(line, "_LEAST", 4)
    monkeypatch.setattr(line, "_cheapest", line._cheapest.__wrapped__)
    inputs = make((tokens,), batch=batch, kv_heads=4, value_dim=3)
    (axis,) = axes_of((tokens,), **{"dilation": 1, "stride": 1, "is_causal": False, **options})
    assert line.spacing_of(inputs, (axis,)).tiles == tiles
    slow = with_gradients(inputs, neighborhood_attention_reference, weighs_lse=False, **options)
    torch.testing.assert_close(with_gradients(inputs, weighs_lse=False, **options), slow, rtol=1e-9, atol=1e-10)


def test_a_window_over_everything_is_softmax_attention():
    inputs = make((5, 7))
    whole = neighborhood_attention(*inputs, window_size=(5, 7))
    flat = softmax_attention(*(t.flatten(1, 2) for t in inputs)).view_as(whole)
    torch.testing.assert_close(whole, flat)
    torch.testing.assert_close(*(torch.autograd.grad(weigh(x), inputs) for x in (whole, flat)))


@pytest.mark.parametrize("border", ["shift", "truncate"])
def test_additional_keys_join_one_softmax(border):
    """The same as attending to them apart and merging the two by their log-sum-exps (section 3 of the sheet)."""
    inputs = make((5, 6))
    more = [torch.randn(2, 11, 2, size, dtype=torch.float64, requires_grad=True) for size in (3, 5)]
    bias = torch.randn(4, 5, 5, dtype=torch.float64, requires_grad=True)
    options = {"window_size": 3, "border": border}
    joined = with_gradients([*inputs, bias, *more], **options)
    near = neighborhood_attention(*inputs, **options, relative_bias=bias, return_lse=True)
    far = softmax_attention(inputs[0].flatten(1, 2), *more, return_lse=True)
    parts = zip((x.flatten(1, 2) for x in near), far)
    out, lse = (x.unflatten(1, (5, 6)) for x in merge_attention(*parts))
    grads = torch.autograd.grad(weigh(out) + weigh(lse), [*inputs, bias, *more])
    torch.testing.assert_close(joined, [out, lse, *grads], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("block", "halo"), [(1, 1), (1, 3), (2, 1), (3, 2), (4, 3)])
def test_cut_windows_of_strided_queries_are_halo_attention(block, halo):
    """Blocks share a window that reaches beyond them; a block of one cell is stand-alone self-attention."""
    inputs = make((7, 10))
    ours = neighborhood_attention(*inputs, window_size=block + 2 * halo, stride=block, border="truncate")
    theirs = halo_attention(*inputs, block_size=block, halo_size=halo)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(weigh(x), inputs) for x in (ours, theirs)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("value_dim", [3, 5], ids=["fused", "products"])
@pytest.mark.parametrize("is_whole", [True, False])
def test_rows_that_a_bias_closes_are_zero(is_whole, value_dim):
    inputs = make((19, 11), value_dim=value_dim)
    bias = torch.randn(4, 5, 5, dtype=torch.float64)
    bias[1] = -torch.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "costs_less_at_once", lambda *sizes, is_fused: is_whole)
        out, lse = neighborhood_attention(*inputs, window_size=3, relative_bias=bias, return_lse=True)
    assert not out[..., 1, :].any()
    assert (lse[..., 1] == -torch.inf).all()
    assert lse[..., [0, 2, 3]].isfinite().all()
    expected = neighborhood_attention_reference(*inputs, window_size=3, relative_bias=bias)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)
    for gradient in torch.autograd.grad(weigh(out), inputs):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_packed_sequences_are_separate(backend, integer):
    """Also sequences shorter than the window, over several tiles."""
    inputs = make((211,), batch=1)
    bounds = [0, 1, 3, 50, 140, 211]
    options = {"is_causal": True, "backend": backend}
    packed = neighborhood_attention(*inputs, window_size=20, cu_seqlens=torch.tensor(bounds, dtype=integer), **options)
    parts = [
        neighborhood_attention(*(t[:, a:b] for t in inputs), window_size=min(20, b - a), **options)
        for a, b in itertools.pairwise(bounds)
    ]
    separate = torch.cat(parts, 1)
    torch.testing.assert_close(packed, separate)
    torch.testing.assert_close(*(torch.autograd.grad(weigh(x), inputs) for x in (packed, separate)))


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation made, views left out."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.untyped_storage().nbytes() // t.element_size())
        return result


@pytest.mark.parametrize("value_dim", [3, 5], ids=["fused", "products"])
def test_memory_does_not_grow_with_the_window(value_dim):
    """Forward and backward: no tensor holds n x n scores, nor n x window ones; the kernels are looked into."""
    q, k, v = (x.detach() for x in make((40, 44), batch=1, value_dim=value_dim, dtype=torch.float32))
    sizes = {}
    for window in (5, 13):
        options = ((window, 1, 1, 0) * 2, 0.5)
        with pytest.MonkeyPatch.context() as patch, Largest() as largest:
            patch.setattr(scores, "_SCORES", 2**17)
            out, lse = function._run(q, k, v, *[None] * 4, *options)
            of_lse = None if value_dim == 3 else torch.ones_like(lse)
            function._run_backward(q, k, v, *[None] * 4, out, lse, torch.ones_like(out), of_lse, *options)
        sizes[window] = largest.elements
    assert 2**12 < sizes[13] <= max(1.3 * sizes[5], 2**17)
    assert 2**17 < 40 * 44 * 4 * 13**2 / 8


def test_what_is_refused_says_how_to_repair_it():
    q, k, v = (t.detach() for t in make((5, 7)))
    line = [t.detach() for t in make((7,), batch=1)]
    refused = [
        (ShapeError, "window_size 9 is larger than the width 7 .* use window_size <= 7", {"window_size": (3, 9)}),
        (ShapeError, "dilation 3 reaches over 6 tokens.* use window_size <= 1", {"window_size": 2, "dilation": (3, 1)}),
        (ValueError, "window_size must be at least 1", {"window_size": 0}),
        (ValueError, "stride 4 is larger than window_size 3", {"window_size": 3, "stride": 4}),
        (ShapeError, "one value or 2", {"window_size": (3, 3, 3)}),
        (ShapeError, r"relative_bias must be .* = \[4, 5, 5\]", {"window_size": 3, "relative_bias": q.new_zeros(4, 5)}),
        (ValueError, "pass both or neither", {"window_size": 3, "additional_keys": q.new_zeros(2, 1, 2, 3)}),
        (
            ShapeError,
            r"additional_values must be \[B, E, Hkv, size\]",
            {
                "window_size": 3,
                "additional_keys": q.new_zeros(2, 1, 2, 3),
                "additional_values": q.new_zeros(2, 1, 2, 3),
            },
        ),
        (
            ShapeError,
            r"additional_values must be .*got \[\]",
            {"window_size": 3, "additional_keys": q.new_zeros(2, 1, 2, 3), "additional_values": q.new_zeros(())},
        ),
        (
            TypeError,
            "additional_keys must have the dtype",
            {
                "window_size": 3,
                "additional_keys": torch.zeros(2, 1, 2, 3),
                "additional_values": q.new_zeros(2, 1, 2, 5),
            },
        ),
    ]
    for error, message, options in refused:
        with pytest.raises(error, match=message):
            neighborhood_attention(q, k, v, **options)
    with pytest.raises(ValueError, match="one causal axis"):
        neighborhood_attention(*line, window_size=3, cu_seqlens=torch.tensor([0, 7]))
    with pytest.raises(ShapeError, match="same grid"):
        neighborhood_attention(q, k[:, 1:], v[:, 1:], window_size=3)


# PyTorch's searchsorted finds a mapped tensor not contiguous.
@pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning")
def test_packings_cannot_be_mapped_over():
    line = [t.detach() for t in make((7,), batch=1)]
    with pytest.raises(NotImplementedError, match="one packing"):
        vmap(lambda bounds: neighborhood_attention(*line, window_size=3, is_causal=True, cu_seqlens=bounds))(
            torch.tensor([[0, 7], [0, 7]])
        )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize(("tokens", "window"), [(1, 1), (2, 2), (4, 2), (6, 2)])
def test_rows_of_scores_that_are_not_finite_are_those_of_the_definition(
    tokens: int, window: int, name: str, bad: float
) -> None:
    tensors = {n: torch.randn(1, tokens, 1, 3, dtype=torch.float64) for n in "qkv"}
    tensors[name][0, -1, 0, 2] = bad
    for options in ({"is_causal": True}, {}):
        expected = neighborhood_attention_reference(**tensors, window_size=window, **options)
        found = neighborhood_attention(**tensors, window_size=window, **options)
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_a_dilation_beyond_the_grid_leaves_each_token_alone() -> None:
    q, k, v = torch.randn(3, 1, 5, 6, 2, 3).unbind()
    found = neighborhood_attention(q, k, v, window_size=2, dilation=10**12, is_causal=True)
    torch.testing.assert_close(found, v)


@pytest.mark.parametrize("option", [{"is_causal": True}, {"border": "truncate"}])
@pytest.mark.parametrize("more", [{}, {"stride": 2}, {"dilation": 2}, {"return_lse": True}], ids=str)
@pytest.mark.parametrize("space", [(0,), (0, 4), (4, 0), (2, 0, 3)], ids=str)
def test_a_grid_without_cells_gives_nothing(space: tuple[int, ...], more: dict, option: dict) -> None:
    q, k, v = (torch.randn(2, *space, 3, 4, requires_grad=True) for _ in range(3))
    given = {"window_size": 3, **option, **more}
    found, right = (f(q, k, v, **given) for f in (neighborhood_attention, neighborhood_attention_reference))
    found, right = (x if isinstance(x, tuple) else (x,) for x in (found, right))
    assert [x.shape for x in found] == [x.shape for x in right]
    found[0].sum().backward()
    assert q.grad is not None
    assert q.grad.shape == q.shape


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("entry", range(9))
def test_an_entry_that_is_not_finite_reaches_those_who_look_at_it_and_no_other(entry: int, value: float) -> None:
    q, k, v, extra = (torch.randn(2, *sizes, 2, 4) for sizes in ((5, 6), (5, 6), (5, 6), (3,)))
    bias = torch.randn(2, 9).index_fill(1, torch.tensor([entry]), value).view(2, 3, 3)
    given = {"window_size": 2, "relative_bias": bias, "additional_keys": extra, "additional_values": extra}
    found, right = (f(q, k, v, **given) for f in (neighborhood_attention, neighborhood_attention_reference))
    assert torch.equal(found.isfinite(), right.isfinite())
