"""Taylor and key-scored attention beside the laws that all layers obey: their equations, written out as matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attensor import nn

C, H, T = 12, 3, 37
K = C // H


def heads_of(layer: nn.LinearAttention, x: Tensor) -> tuple[Tensor, ...]:
    """Projected queries, keys and values [B, H, T, K], without positions."""
    q, k, v = (p(x).unflatten(-1, (-1, K)) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    if hasattr(layer, "q_norm"):
        q, k = (
            y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
            for y, norm in ((q, layer.q_norm), (k, layer.k_norm))
        )
    return tuple(y.transpose(1, 2) for y in (q, k, v))


def uneven(layer: nn.LinearAttention) -> None:
    """Weights of norms that differ, where there are norms."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 2.0)


def merged(layer: nn.LinearAttention, out: Tensor) -> Tensor:
    return layer.o_proj(out.transpose(1, 2).flatten(-2))


def by_matrices(layer: nn.TaylorAttention, x: Tensor) -> Tensor:
    q, k, v = heads_of(layer, x)
    terms = torch.einsum("bhic,bhjc->bhijc", q, k) / K**0.5
    s = terms.sum(-1)
    second = s.square() if layer.second_order == "full" else terms.square().sum(-1)
    orders = [weight.tril() for weight in (torch.ones_like(s), s, second / 2)]
    eps = 1e-6 if layer.second_order == "full" else 0.0
    if layer.normalize == "joint":
        return merged(layer, sum(orders) @ v / (sum(orders).sum(-1, keepdim=True) + eps))
    return merged(layer, sum(weight @ v / weight.sum(-1, keepdim=True) for weight in orders))


@pytest.mark.parametrize(
    "options",
    [
        {}, {"second_order": "full"}, {"normalize": "separate"}, {"second_order": "full", "normalize": "separate"},
        {"qk_norm": True},
    ],
    ids=str,
)  # fmt: skip
def test_taylor_is_its_matrix_in_every_form(options: dict[str, Any]) -> None:
    """Whole rows, and by pieces that end inside chunks, with gradients."""
    torch.manual_seed(0)
    layer = nn.TaylorAttention(C, H, qkv_bias=True, dtype=torch.float64, **options)
    uneven(layer)
    if options.get("normalize") == "separate" and not options.get("second_order"):
        layer.denominator = nn.LinearAttention(C, H, feature_map="relu", normalize=True).denominator
        layer.denominator = type(layer.denominator)(minimum=0.0, keep_sign=True)
    x = torch.randn(2, T, C, dtype=torch.float64, requires_grad=True)
    expected = by_matrices(layer, x)
    cache = layer.new_cache(2)
    pieces = torch.cat([layer(piece, cache=cache) for piece in x.split([1, 9, 20, 1, 6], 1)], 1)
    for found in (layer(x), pieces):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weigh = torch.randn_like(expected)
    grads = [torch.autograd.grad((weigh * y).sum(), [x, *layer.parameters()]) for y in (layer(x), expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_key_scored_is_its_matrix_in_every_form(qk_norm: bool) -> None:
    """A row of softmax over scores of keys; whole, by pieces, packed, padded."""
    torch.manual_seed(0)
    layer = nn.KeyScoredAttention(C, H, qkv_bias=True, qk_norm=qk_norm, dtype=torch.float64)
    uneven(layer)
    x = torch.randn(2, T, C, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        layer.q_proj.weight.mul_(30)  # scores that differ by hundreds
    q, k, v = heads_of(layer, x)
    scores = (F.silu(q) * k).sum(-1)[..., None, :].expand(-1, -1, T, -1) / K**0.5
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    expected = merged(layer, scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v)
    spread = scores.max() - scores.min()
    assert spread < 32 if qk_norm else spread > 50  # sqrt(K) times both weights, on both sides
    cache = layer.new_cache(2)
    pieces = torch.cat([layer(piece, cache=cache) for piece in x.split([1, 9, 20, 1, 6], 1)], 1)
    packed = layer(x.flatten(0, 1)[None], cu_seqlens=torch.tensor([0, T, 2 * T]))[0].unflatten(0, (2, T))
    for found in (layer(x), pieces, packed):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weigh = torch.randn_like(expected)
    everything = [x, *layer.parameters()]
    wanted = torch.autograd.grad((weigh * expected).sum(), everything, retain_graph=True)
    for found in (layer(x), pieces, packed):
        for ours, theirs in zip(torch.autograd.grad((weigh * found).sum(), everything), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("lengths", [[7, 1, 12], [1], [3, 0, 5]], ids=str)
def test_key_scored_sequences_in_a_row_know_nothing_of_each_other(lengths: list[int]) -> None:
    torch.manual_seed(0)
    layer = nn.KeyScoredAttention(C, H, dtype=torch.float64)
    parts = [10.0 ** (2 * place) * torch.randn(1, n, C, dtype=torch.float64) for place, n in enumerate(lengths)]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    packed = layer(torch.cat(parts, 1), cu_seqlens=bounds)
    for part, found in zip(parts, packed.split(lengths, 1), strict=True):
        torch.testing.assert_close(found, layer(part), rtol=1e-10, atol=1e-10)


def test_key_scored_padding_counts_for_nothing_with_gradients() -> None:
    torch.manual_seed(0)
    layer = nn.KeyScoredAttention(C, H, dtype=torch.float64)
    x, cache = torch.randn(2, 9, C, dtype=torch.float64, requires_grad=True), layer.new_cache(2)
    cache.first = torch.tensor([0, 6])  # of the second row, a whole piece and part of the next are padding
    out = torch.cat([layer(piece, cache=cache) for piece in x.split([4, 4, 1], 1)], 1)
    torch.testing.assert_close(out[1:, 6:], layer(x[1:, 6:]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out[:1], layer(x[:1]), rtol=1e-10, atol=1e-10)
    (grad,) = torch.autograd.grad((out[1] * torch.randn(9, C)).sum(), x)
    assert grad.isfinite().all()
    assert not grad[1, :6].any()
    assert grad[1, 6:].any()


def test_rotary_positions_change_no_score_of_a_key() -> None:
    torch.manual_seed(0)
    layer, x = nn.KeyScoredAttention(C, H, dtype=torch.float64), torch.randn(2, T, C, dtype=torch.float64)
    still = layer(x)
    layer.uses_positions = True
    torch.testing.assert_close(layer(x), still, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("context", [1, 50])
def test_caches_hold_what_the_paper_s_table_counts(context: int) -> None:
    """Table of cache sizes: 3 d + 2 d^2 / h, and d + 2 h of which the logarithm of the sum makes d + h."""
    for layer, numbers in (
        (nn.TaylorAttention(C, H), 3 * C + 2 * C**2 // H),
        (nn.TaylorAttention(C, H, normalize="separate"), 3 * C + 2 * C**2 // H),
        (nn.KeyScoredAttention(C, H), C + H),
        (nn.SoftmaxAttention(C, H), 2 * context * C),
    ):
        cache = layer.new_cache(2)
        layer(torch.randn(2, context, C), cache=cache)
        assert cache.nbytes == 2 * 4 * numbers


def test_a_diagonal_sum_of_weights_may_cross_zero() -> None:
    """Weights down to 1 - K / 2: the output stays finite, with the sign of its sum."""
    layer = nn.TaylorAttention(C, H, dtype=torch.float64)
    q = torch.full((1, 1, H, K), 1.0, dtype=torch.float64)
    k, v = -q * K**0.5, torch.ones_like(q)
    assert (layer.attend(nn.Heads(q, k, v)) == 1).all()  # weight 1 - 4 + 2 = -1, over itself
    k = -q * K**0.5 * (1 - 0.5**0.5)  # the root of 1 - 4 a + 2 a^2
    assert layer.attend(nn.Heads(q, k, v)).abs().max() <= 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"second_order": "both"}, "second_order must be one of 'diagonal', 'full', got 'both'"),
        ({"normalize": "none"}, "normalize must be one of 'joint', 'separate', got 'none'"),
        ({"rotary_base": 0.0}, "rotary_base must be greater than 0"),
    ],
)
def test_options_that_make_no_layer_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^TaylorAttention: {told}"):
        nn.TaylorAttention(C, H, **options)
    with pytest.raises(ValueError, match="even head width, got hidden_size 15 / num_heads 3 = 5"):
        nn.TaylorAttention(15, 3, rotary_base=10.0)
