"""Kernelised attention with relative positions: both algorithms follow the definition; biases are never symmetric."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attensor.bench import measure_peak_bytes
from attensor.errors import ShapeError
from attensor.ops import (
    PositiveRandomFeatures,
    kernels_form,
    relative_kernel_attention,
    relative_kernel_attention_reference,
)
from attensor.ops.feature_maps import random_projection
from attensor.ops.relative_kernel_attention import cost, fourier, tiles
from attensor.ops.relative_kernel_attention.cost import faster_algorithm, keys_per_query
from attensor.ops.relative_kernel_attention.operands import Geometry

BOTH = pytest.mark.parametrize("backend", ["cpp", "torch"])
CAUSAL = pytest.mark.parametrize("is_causal", [False, True])


def make(*space: int, queries: int | None = None, reach: int | None = None, kv_heads: int = 3) -> list[Tensor]:
    """q, k, v and relative_bias of B 2, H 3, K 5, V 4; float64, with gradients."""
    shapes = [(2, queries, 3, 5) if queries else (2, *space, 3, 5), (2, *space, kv_heads, 5), (2, *space, kv_heads, 4)]
    bias = [2 * (reach or n) - 1 for n in space]
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (*shapes, (3, *bias))]


def features(heads: int = 3) -> PositiveRandomFeatures:
    generator = torch.Generator().manual_seed(1)
    return PositiveRandomFeatures(random_projection(heads, 7, 5, generator=generator).double(), normalize=True)


def weighted(out: Tensor) -> Tensor:
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()


def run(function, tensors, **options) -> list[Tensor]:
    """Output and the gradients of q, k, v and the bias."""
    q, k, v, bias = tensors
    out = function(q, k, v, relative_bias=bias, feature_map=features(k.shape[-2]), **options)
    return [out, *torch.autograd.grad(weighted(out), tensors)]


def agree(found, expected, bound: float = 1e-10) -> None:
    for name, got, want in zip(("out", "dq", "dk", "dv", "dbias"), found, expected):
        torch.testing.assert_close(got, want, rtol=bound, atol=bound, msg=lambda m, name=name: f"{name}: {m}")


@CAUSAL
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_loops_over_pairs_agree(is_causal: bool, backend: str) -> None:
    q, k, v, bias = (t.detach() for t in make(7))
    phi = features()
    expected = torch.zeros(2, 7, 3, 4, dtype=torch.float64)
    for b in range(2):
        for h in range(3):
            for i in range(7):
                weights = torch.zeros(7, dtype=torch.float64)
                for j in range(i + 1 if is_causal else 7):
                    kernel = phi(q)[b, i, h] @ phi(k)[b, j, h]
                    weights[j] = kernel * bias[h, j - i + 6].exp()
                expected[b, i, h] = weights / weights.sum() @ v[b, :, h]
    out = relative_kernel_attention(q, k, v, relative_bias=bias, feature_map=phi, is_causal=is_causal, backend=backend)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_the_layout_of_masked_performers_agrees(algorithm: str) -> None:
    """Two halves of biases, transformed as one circulant of twice the length, in complex numbers (RPEMask)."""
    n = 13
    q, k, v, bias = (t.detach() for t in make(n))
    phi_q, phi_k = features()(q), features()(k)
    after, before = bias[:, n - 1 :].exp(), bias[:, : n - 1].exp()
    circulant = torch.cat([after, torch.zeros(3, 1), before], 1)  # offsets 0 .. n - 1, none, -(n - 1) .. -1

    def product(u: Tensor) -> Tensor:  # [2, n, 3, ..]: y_i = sum_j c_{j - i} u_j
        shape = (1, 2 * n, 3, *[1] * (u.ndim - 3))
        transformed = torch.fft.ifft(u, 2 * n, dim=1) * torch.fft.fft(circulant.T, dim=0).view(shape)
        return torch.fft.fft(transformed, dim=1)[:, :n].real

    numerator = torch.einsum("bihm,bihmv->bihv", phi_q, product(torch.einsum("bjhm,bjhv->bjhmv", phi_k, v)))
    denominator = torch.einsum("bihm,bihm->bih", phi_q, product(phi_k))
    out = relative_kernel_attention(q, k, v, relative_bias=bias, feature_map=features(), algorithm=algorithm)
    torch.testing.assert_close(out, numerator / denominator[..., None], rtol=0, atol=1e-12)


@CAUSAL
@pytest.mark.parametrize("tokens", [1, 2, 31, 127, 128, 131, 257])
def test_sequences_follow_the_definition(tokens: int, is_causal: bool, algorithm: str) -> None:
    tensors = make(tokens)
    expected = run(relative_kernel_attention_reference, tensors, is_causal=is_causal)
    agree(run(relative_kernel_attention, tensors, is_causal=is_causal, algorithm=algorithm), expected)


@pytest.mark.parametrize("space", [(1, 1), (5, 7), (13, 11), (131, 2), (2, 149)], ids=str)
def test_grids_follow_the_definition(space: tuple[int, int], algorithm: str) -> None:
    tensors = make(*space)
    expected = run(relative_kernel_attention_reference, tensors)
    agree(run(relative_kernel_attention, tensors, algorithm=algorithm), expected)


@pytest.mark.parametrize(("space", "reach"), [((37,), 5), ((37,), 50), ((11, 7), 3)], ids=str)
def test_offsets_beyond_the_table_have_its_last_bias(space: tuple[int, ...], reach: int, algorithm: str) -> None:
    tensors = make(*space, reach=reach)

    def spelled_out(q: Tensor, k: Tensor, v: Tensor, *, relative_bias: Tensor, feature_map) -> Tensor:
        for dim, size in enumerate(space, start=1):
            offsets = torch.arange(1 - size, size).clamp(1 - reach, reach - 1) + reach - 1
            relative_bias = relative_bias.index_select(dim, offsets)
        return relative_kernel_attention_reference(q, k, v, relative_bias=relative_bias, feature_map=feature_map)

    agree(run(relative_kernel_attention, tensors, algorithm=algorithm), run(spelled_out, tensors))


@CAUSAL
@BOTH
@pytest.mark.parametrize(
    ("tokens", "queries", "reach"), [(67, 67, 5), (131, 131, 40), (129, 41, 1), (97, 89, 17)], ids=str
)
def test_far_keys_are_summed_up(
    tokens: int, queries: int, reach: int, backend: str, is_causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles whose coefficients are all the same are left out, with the same output and gradients."""
    monkeypatch.setattr(tiles, "_TILE", 4)
    geometry = Geometry((queries,), (tokens,), is_causal, reach - 1)
    near, whole = (tiles.products_of_tiles(g, 7, 5) for g in (geometry, geometry._replace(reach=None)))
    assert near < whole
    tensors = make(tokens, queries=queries, reach=reach)
    expected = run(relative_kernel_attention_reference, tensors, is_causal=is_causal)
    agree(run(relative_kernel_attention, tensors, is_causal=is_causal, algorithm="tiles", backend=backend), expected)


@CAUSAL
@pytest.mark.parametrize("queries", [None, 1031])
def test_keys_are_read_once_for_many_queries(queries: int | None, is_causal: bool) -> None:
    """More queries than C++ takes at a time, on two threads; the definition is computed with all pairs."""
    tensors = make(1100, queries=queries)
    expected = run(relative_kernel_attention_reference, tensors, is_causal=is_causal)
    torch.set_num_threads(2)
    try:
        found = run(relative_kernel_attention, tensors, is_causal=is_causal, algorithm="tiles", backend="cpp")
    finally:
        torch.set_num_threads(1)
    agree(found, expected)


def test_many_small_groups_are_the_whole(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make(67)
    expected = run(relative_kernel_attention_reference, tensors)
    monkeypatch.setattr(fourier, "_LEAST_COLUMNS", 1)
    for budget in (1, 2 * 135 * 5, 9 * 135 * 5 + 1, 10**9):
        monkeypatch.setattr(fourier, "_CPU_ELEMENTS", budget)
        monkeypatch.setattr(tiles, "_CPU_ELEMENTS", budget)
        monkeypatch.setattr(tiles, "_TILE", 16)
        agree(run(relative_kernel_attention, tensors, algorithm=algorithm), expected)


@pytest.mark.parametrize("space", [(11,), (3, 5)], ids=str)
def test_masked_keys_are_absent(space: tuple[int, ...], algorithm: str) -> None:
    q, k, v, bias = tensors = make(*space)
    mask = torch.rand(2, *space) < 0.6
    options = {"relative_bias": bias, "feature_map": features(), "algorithm": algorithm}
    out = relative_kernel_attention(q, k, v, key_mask=mask, **options)
    changed = relative_kernel_attention(
        q,
        torch.where(mask[..., None, None], k, 1e3),
        torch.where(mask[..., None, None], v, 1e3),
        key_mask=mask,
        **options,
    )
    torch.testing.assert_close(out, changed, rtol=0, atol=1e-9)
    nobody = relative_kernel_attention(q, k, v, key_mask=torch.zeros_like(mask), **options)
    grads = torch.autograd.grad(weighted(nobody), tensors)
    assert all((t == 0).all() for t in (nobody, *grads))


def test_masked_keys_weigh_nothing() -> None:
    q, k, v, bias = (t.detach() for t in make(11))
    mask = (torch.arange(11) < 7).expand(2, -1)
    padded = relative_kernel_attention(q, k, v, relative_bias=bias, feature_map=features(), key_mask=mask)
    short = relative_kernel_attention(q[:, :7], k[:, :7], v[:, :7], relative_bias=bias[:, 4:-4], feature_map=features())
    torch.testing.assert_close(padded[:, :7], short, rtol=0, atol=1e-12)


def test_a_bias_common_to_all_offsets_cancels(algorithm: str) -> None:
    q, k, v, bias = make(11)
    options = {"feature_map": features(), "algorithm": algorithm}
    found = [relative_kernel_attention(q, k, v, relative_bias=bias + shift, **options) for shift in (0.0, 900.0)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-11)


def test_only_tiles_keep_the_future_out_bit_by_bit() -> None:
    q, k, v, bias = (t.detach() for t in make(300))
    later = [torch.cat([t[:, :200], 3 * t[:, 200:]], 1) for t in (q, k, v)]
    for algorithm, bound in (("tiles", 0.0), ("fft", 1e-12)):
        options = {"relative_bias": bias, "feature_map": features(), "is_causal": True, "algorithm": algorithm}
        before, after = (relative_kernel_attention(*t, **options)[:, :200] for t in ((q, k, v), later))
        torch.testing.assert_close(before, after, rtol=0, atol=bound)


@pytest.mark.parametrize("deviation", [1.0, 3.0, 6.0])
def test_single_precision_has_the_error_of_the_transforms(deviation: float) -> None:
    """The error is absolute: strong biases lose digits in float32 transforms, not in tiles or float64 ones."""
    q, k, v, bias = (t.detach() for t in make(1009))
    exact = relative_kernel_attention(q, k, v, relative_bias=deviation * bias, feature_map="elu+1", algorithm="tiles")
    single = [t.float() for t in (q, k, v)]
    errors = {}
    for name, options in (
        ("fft", {"algorithm": "fft"}),
        ("fft in float64", {"algorithm": "fft-float64"}),
        ("tiles", {"algorithm": "tiles"}),
    ):
        out = relative_kernel_attention(*single, relative_bias=deviation * bias.float(), feature_map="elu+1", **options)
        assert out.dtype == torch.float32
        errors[name] = float((out - exact).norm() / exact.norm())
    assert errors["tiles"] < 2e-6
    assert errors["fft in float64"] < 2e-6
    assert errors["fft"] < 1e-5 * math.exp(deviation)


def test_weights_below_the_rounding_of_transforms_do_not_explode() -> None:
    """The first queries of a causal row reach only offsets whose weight is e^-40 of the largest."""
    q, k, v, bias = (t.detach().float() for t in make(301))
    bias = torch.where(torch.arange(601) == 300 - 50, 40.0, bias)
    out = relative_kernel_attention(q, k, v, relative_bias=bias, feature_map="elu+1", is_causal=True, algorithm="fft")
    assert out.abs().amax() < 3 * v.abs().amax()
    exact = relative_kernel_attention_reference(q, k, v, relative_bias=bias, feature_map="elu+1", is_causal=True)
    torch.testing.assert_close(out[:, 50:], exact[:, 50:], rtol=0, atol=1e-4)
    safe = relative_kernel_attention(
        q, k, v, relative_bias=bias, feature_map="elu+1", is_causal=True, algorithm="tiles"
    )
    torch.testing.assert_close(safe, exact, rtol=0, atol=1e-5)


def test_the_algorithm_is_chosen_by_the_sizes() -> None:
    chosen = [faster_algorithm(Geometry((n,), (n,), False), 32, 33) for n in (64, 512, 16_384, 65_536)]
    assert chosen == ["tiles", "tiles", "fft", "fft"]
    # tiles in C++ are worth more keys
    assert [faster_algorithm(Geometry((8192,), (8192,), False), 64, 65, b) for b in ("torch", "cpp")] == [
        "fft",
        "tiles",
    ]
    assert faster_algorithm(Geometry((1,), (65_536,), True), 32, 33) == "tiles"
    assert faster_algorithm(Geometry((65_536,), (65_536,), True, 127), 32, 33) == "tiles"


@CAUSAL
@pytest.mark.parametrize("space", [(131,), (9, 11), (1031,)], ids=str)
def test_the_number_of_keys_is_what_is_multiplied(
    space: tuple[int, ...], is_causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cost._TRANSFORM_COST, "torch", 1e9)
    if is_causal and len(space) == 2:
        return
    if kernels_form() == "torch":
        pytest.skip("there are no C++ kernels, which count their useful operations")
    q, k, v, bias = (t.detach() for t in make(*space))
    with FlopCounterMode(display=False) as counter:
        relative_kernel_attention(
            q, k, v, relative_bias=bias, feature_map="relu", is_causal=is_causal, algorithm="tiles"
        )
    keys = keys_per_query(space, 5, 5, is_causal=is_causal)
    assert counter.get_total_flops() == pytest.approx(2 * 3 * math.prod(space) * keys * 2 * (5 + 5), rel=0.01)


def test_a_short_reach_makes_the_cost_of_a_query_constant() -> None:
    keys = [keys_per_query((n,), 32, 33, is_causal=True, reach=127) for n in (2**12, 2**13, 2**20)]
    assert max(keys) < 1.03 * min(keys) < 300
    everything = [keys_per_query((n,), 32, 33, is_causal=True) for n in (2**10, 2**11)]
    assert everything[1] > 1.7 * everything[0]


def test_where_transforms_are_faster_keys_stand_for_their_cost() -> None:
    long, longer = (keys_per_query((n,), 32, 33, is_causal=False) for n in (2**15, 2**20))
    assert long < 2**15 / 4
    assert longer / long == pytest.approx(21 / 16, rel=0.01)  # log2 of the transform's length


def test_bad_input_is_refused() -> None:
    q, k, v, bias = (t.detach() for t in make(7))
    with pytest.raises(ShapeError, match=r"relative_bias.*H = 3.*\[3, 12\]"):
        relative_kernel_attention(q, k, v, relative_bias=bias[:, 1:])
    with pytest.raises(ShapeError, match=r"relative_bias.*2 axes"):
        relative_kernel_attention(*(t[:, :, None] for t in (q, k, v)), relative_bias=bias)
    with pytest.raises(ShapeError, match="tokens of q"):
        relative_kernel_attention(q, k[:, 1:], v[:, 1:], relative_bias=bias)
    with pytest.raises(ValueError, match="algorithm must be None or one of tiles, fft, fft-float64, got 'dense'"):
        relative_kernel_attention(q, k, v, relative_bias=bias, algorithm="dense")
    with pytest.raises(ValueError, match="needs one axis"):
        relative_kernel_attention(*(t[:, :, None] for t in (q, k, v)), relative_bias=bias[..., None], is_causal=True)
    with pytest.raises(ShapeError, match=r"key_mask must be bool \[2, 7\]"):
        relative_kernel_attention(q, k, v, relative_bias=bias, key_mask=torch.ones(2, 7))
    bounds = torch.tensor([0, 7])
    one = [t[:1] for t in (q, k, v)]
    with pytest.raises(ValueError, match="needs max_seqlen"):
        relative_kernel_attention(*one, relative_bias=bias, cu_seqlens=bounds, algorithm="fft")
    with pytest.raises(ValueError, match="no mask"):
        relative_kernel_attention(
            *one, relative_bias=bias, cu_seqlens=bounds, key_mask=torch.ones(1, 7, dtype=torch.bool)
        )


@pytest.mark.slow
def test_memory_is_linear(algorithm: str) -> None:
    """Four times the tokens need about four times the memory, forward and backward; all pairs would need 4 GiB."""

    def peak(tokens: int) -> int:
        q, k, v = (torch.randn(1, tokens, 1, 16, requires_grad=True) for _ in range(3))
        bias = torch.randn(1, 2 * tokens - 1, requires_grad=True)

        def call() -> None:
            out = relative_kernel_attention(
                q, k, v, relative_bias=bias, feature_map="elu+1", is_causal=True, algorithm=algorithm
            )
            torch.autograd.grad(weighted(out), (q, k, v, bias))

        call()
        return measure_peak_bytes(call)

    long = 32_768 if algorithm == "fft" else 16_384
    assert peak(long) < 6 * max(peak(long // 4), 2**22)
