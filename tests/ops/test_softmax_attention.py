"""The definition of softmax_attention in loops, closed rows, dropout, dynamic lengths, memory, its refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from attensor.errors import ShapeError
from attensor.ops import softmax_attention, softmax_attention_reference


def make(queries, keys, *, batch=2, heads=6, kv_heads=2, key_dim=3, value_dim=7, dtype=torch.float64):
    sizes = ((queries, heads, key_dim), (keys, kv_heads, key_dim), (keys, kv_heads, value_dim))
    return [torch.randn(batch, *size, dtype=dtype, requires_grad=True) for size in sizes]


def weigh(x):
    return (x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum()


def with_gradients(function, inputs, **options):
    result = function(*inputs, **options)
    outputs = result if isinstance(result, tuple) else (result,)
    return [*outputs, *torch.autograd.grad(sum(weigh(x) for x in outputs), inputs)]


def test_reference_is_the_definition():
    """One query at a time, in plain Python: causal aligned bottom-right, query head h reads head h // (H / Hkv)."""
    q, k, v = (t.detach() for t in make(5, 11))
    out, lse = softmax_attention_reference(q, k, v, scale=0.3, is_causal=True, return_lse=True)
    for b in range(2):
        for i in range(5):
            for h in range(6):
                scores = [0.3 * float(q[b, i, h] @ k[b, j, h // 3]) for j in range(i + 11 - 5 + 1)]
                total = sum(math.exp(s) for s in scores)
                expected = sum(math.exp(s) / total * v[b, j, h // 3] for j, s in enumerate(scores))
                torch.testing.assert_close(out[b, i, h], expected)
                torch.testing.assert_close(lse[b, i, h].item(), math.log(total))


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_query_that_may_attend_to_nothing_gets_zero_and_gives_no_gradient(kind, backend):
    inputs = make(5, 7)
    allowed = torch.ones(5, 7, dtype=torch.bool)
    allowed[2] = False
    bias = torch.zeros(5, 7, dtype=torch.float64).masked_fill(~allowed, -math.inf)
    mask = allowed if kind == "bool" else bias
    out = softmax_attention(*inputs, attn_mask=mask, backend=backend)
    assert out[:, 2].eq(0).all()
    assert out[:, 3].ne(0).any()
    with torch.autograd.set_detect_anomaly(True):  # a NaN that is masked later on counts as well
        grads = torch.autograd.grad(weigh(out), inputs)
    assert all(g.isfinite().all() for g in grads)
    assert grads[0][:, 2].eq(0).all()
    with torch.no_grad():
        _, lse = softmax_attention(*inputs, attn_mask=mask, backend=backend, return_lse=True)
    assert lse[:, 2].eq(-math.inf).all()
    assert lse[:, 3].isfinite().all()


def test_dropout_repeats_with_its_generator_and_keeps_the_mean():
    q, k, v = (t.detach() for t in make(3, 5))

    def dropped(seed):
        return softmax_attention(q, k, v, dropout_p=0.3, generator=torch.Generator().manual_seed(seed))

    torch.testing.assert_close(dropped(1), dropped(1), rtol=0, atol=0)
    assert not torch.equal(dropped(1), dropped(2))
    mean = torch.stack([dropped(seed) for seed in range(600)]).mean(0)
    torch.testing.assert_close(mean, softmax_attention(q, k, v), rtol=0, atol=0.15)
    torch.manual_seed(5)
    fused = torch.stack([softmax_attention(q, k, v, dropout_p=0.3) for _ in range(600)]).mean(0)
    torch.testing.assert_close(fused, softmax_attention(q, k, v), rtol=0, atol=0.15)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"return_lse": True}], ids=str)
def test_one_graph_serves_all_lengths_and_head_groups_without_gradients(options):
    graphs = []

    def note(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q, k, v: softmax_attention(q, k, v, **options), fullgraph=True, dynamic=True, backend=note
    )
    for tokens in (21, 34, 55):
        inputs = [t.detach() for t in make(tokens, tokens)]
        torch.testing.assert_close(compiled(*inputs), softmax_attention(*inputs, **options))
    assert len(graphs) == 1


STRIDES = {
    "tokens inside heads": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "columns outside": lambda x: x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
    "one for all columns": lambda x: x[..., :1].expand(x.shape),
    "one for all tokens": lambda x: x[:, :1].expand(x.shape),
    "overlapping rows": lambda x: x.flatten().as_strided(x.shape, (5, 3, 2, 1)),
    "part of wider rows": lambda x: torch.cat([x, x * math.nan], -1)[..., : x.shape[-1]],
}


@pytest.mark.parametrize("value_dim", [2, 3, 8, 31])
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("strides", STRIDES)
def test_any_strides_and_widths(strides, heads, value_dim):
    inputs = [STRIDES[strides](t.detach()).requires_grad_() for t in make(5, 11, heads=heads, value_dim=value_dim)]
    mask = torch.randn(11, 5, dtype=torch.float64).mT
    for options in ({}, {"is_causal": True}, {"attn_mask": mask}):
        with torch.no_grad():
            fast = softmax_attention(*inputs, return_lse=True, **options)
            torch.testing.assert_close(fast, softmax_attention_reference(*inputs, return_lse=True, **options))
        fast = with_gradients(softmax_attention, inputs, return_lse=True, **options)
        reference = with_gradients(softmax_attention_reference, inputs, return_lse=True, **options)
        torch.testing.assert_close(fast, reference, rtol=1e-10, atol=1e-10)


def test_values_that_are_columns_of_the_keys_are_not_copied(monkeypatch):
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")  # read once in a process, whose other tests want it quiet
    latent = torch.randn(1, 4096, 1, 40)
    q = torch.randn(1, 1, 8, 40)
    with torch.profiler.profile(profile_memory=True) as profile:
        softmax_attention(q, latent, latent[..., :32])
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < latent.nbytes / 4


def test_autocast_and_a_mask_of_large_numbers_change_no_precision():
    inputs = [t.detach().float() for t in make(5, 11)]
    with torch.autocast("cpu"):
        for backend in ("torch", "reference"):
            out = softmax_attention(*inputs, backend=backend)
            torch.testing.assert_close(out, softmax_attention(*inputs), rtol=1e-6, atol=1e-6)
            assert out.dtype == torch.float32
    mask = torch.full((5, 11), torch.finfo(torch.float32).min)
    half = [t.half() for t in inputs]
    expected = softmax_attention_reference(*half, attn_mask=mask)
    torch.testing.assert_close(softmax_attention(*half, attn_mask=mask), expected, rtol=1e-2, atol=1e-3)


def test_what_is_refused_says_how_to_repair_it():
    q, k, v = (t.detach() for t in make(5, 7))
    with pytest.raises(ShapeError, match=r"Call \.transpose\(1, 2\) first"):
        softmax_attention(*(t.transpose(1, 2) for t in (q, k, v)))
    with pytest.raises(ShapeError, match="same rank"):
        softmax_attention(q, k[0], v)
    with pytest.raises(ShapeError, match="everything but the last size"):
        softmax_attention(q, k, v[:, 1:])
    with pytest.raises(ShapeError, match="same head size"):
        softmax_attention(q[..., 1:], k, v)
    with pytest.raises(ShapeError, match="same batch size"):
        softmax_attention(q[:1], k, v)
    with pytest.raises(TypeError, match=r"use \.to\(q\.dtype\)"):
        softmax_attention(q, k.float(), v)
    with pytest.raises(ValueError, match=r"use \.to\(q\.device\)"):
        softmax_attention(q, k.to("meta"), v)
    with pytest.raises(ShapeError, match="attn_mask must broadcast"):
        softmax_attention(q, k, v, attn_mask=torch.ones(7, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match="must be bool"):
        softmax_attention(q, k, v, attn_mask=torch.ones(5, 7, dtype=torch.int64))
    with pytest.raises(ShapeError, match="batch of 1"):
        softmax_attention(k, k, v, cu_seqlens=torch.tensor([0, 7]))
    with pytest.raises(TypeError, match="cu_seqlens must be int32 or int64"):
        softmax_attention(k[:1], k[:1], v[:1], cu_seqlens=torch.tensor([0.0, 7.0]))
    with pytest.raises(ShapeError, match="as many keys as queries"):
        softmax_attention(q[:1], k[:1], v[:1], cu_seqlens=torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="dropout_p"):
        softmax_attention(q, k, v, dropout_p=1.0)
    with pytest.raises(ShapeError, match="as many sequences, got 2 and 3"):
        softmax_attention(q[:1], k[:1], v[:1], cu_seqlens=(torch.tensor([0, 5]), torch.tensor([0, 2, 7])))


@pytest.mark.parametrize("is_causal", [False, True])
def test_packed_queries_meet_packed_keys_of_other_lengths(is_causal: bool):
    """Cross-attention: each pair of sequences as if alone, aligned at its end; some have no queries."""
    q, k, v = (t.detach()[:1] for t in make(9, 14))
    bounds = [0, 2, 2, 9], [0, 5, 6, 14]
    cu_seqlens = tuple(torch.tensor(x) for x in bounds)
    out, lse = softmax_attention(q, k, v, cu_seqlens=cu_seqlens, is_causal=is_causal, return_lse=True)
    pairs = [(slice(*a), slice(*b)) for a, b in zip(*(itertools.pairwise(x) for x in bounds), strict=True)]
    alone = [
        softmax_attention(q[:, a], k[:, b], v[:, b], is_causal=is_causal, return_lse=True)
        for a, b in pairs
        if a != slice(2, 2)
    ]
    torch.testing.assert_close(out, torch.cat([x for x, _ in alone], 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, torch.cat([x for _, x in alone], 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [1e9, 1e18])
def test_gradients_of_large_scores_keep_their_digits(dtype: torch.dtype, size: float):
    """A log-sum-exp of 1e9 has no digits left for the weights; those of the definition do not go through it."""
    torch.manual_seed(0)
    tracked = [
        (t.detach() * scale).to(dtype).requires_grad_() for t, scale in zip(make(5, 7), (size, 1, 1), strict=True)
    ]
    again = [t.detach().double().requires_grad_() for t in tracked]
    for function, tensors in ((softmax_attention, tracked), (softmax_attention_reference, again)):
        weigh(function(*tensors)).backward()
    for found, expected in zip(tracked, again, strict=True):
        bound = 1e-9 if dtype == torch.float64 else 1e-3
        assert (found.grad.double() - expected.grad).norm() <= bound * (expected.grad.norm() + 1e-9 * size)


@pytest.mark.parametrize("keys", [1, 2, 5, 16])
@pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("where", ["q", "k"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_scores_that_are_all_nan_are_seen(bad: float, where: str, is_causal: bool, keys: int) -> None:
    """Of few keys the fused kernel makes zeros of them."""
    tensors = {name: torch.randn(2, keys, 2, 3) for name in "qkv"}
    tensors[where][0, 0, 0, 1] = bad
    expected = softmax_attention_reference(**tensors, is_causal=is_causal)
    torch.testing.assert_close(softmax_attention(**tensors, is_causal=is_causal), expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("keys", [2, 16, 17, 32, 64, 100])
def test_scores_that_are_not_finite_are_never_hidden(keys: int, dtype: torch.dtype) -> None:
    """torch's kernel makes 0 of them for some numbers of keys, with a log-sum-exp of 0 or infinity."""
    q, k, v = (torch.randn(2, n, 2, 4).to(dtype) for n in (3, keys, keys))
    q[0, 1, 0, 2] = float("inf")
    out = softmax_attention(q, k, v)
    expected = softmax_attention_reference(q, k, v)
    assert torch.equal(out.isnan(), expected.isnan())
    assert out[0, 1, 0].isnan().all()
    assert out[0, 1, 1].isfinite().all()
