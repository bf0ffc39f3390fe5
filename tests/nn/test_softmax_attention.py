"""Softmax and sliding-window layers against plain PyTorch, and what grouping and windows do to the decode state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.nn import MixtureOfHeads, SlidingWindowAttention, SoftmaxAttention

B, T, C, H = 2, 13, 24, 4


def rows(length: int = T, *space: int) -> Tensor:
    return torch.randn(B, length, *space, C, dtype=torch.float64)


def by_hand(layer: SoftmaxAttention, x: Tensor, window: int | None = None) -> Tensor:
    """PyTorch's SDPA with the layer's weights, positions as complex rotations, and a mask written out."""
    projected = (F.linear(x, p.weight) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    q, k, v = (t.unflatten(-1, (-1, C // H)).transpose(1, 2) for t in projected)
    if layer.rotary_base is not None:
        half = C // H // 2
        speed = layer.rotary_base ** (-torch.arange(half, dtype=torch.float64) / half)
        turn = torch.polar(torch.ones(x.shape[1], half, dtype=torch.float64), torch.arange(x.shape[1])[:, None] * speed)
        q, k = (torch.complex(t[..., :half], t[..., half:]) * turn for t in (q, k))
        q, k = (torch.cat([t.real, t.imag], -1) for t in (q, k))
    i = torch.arange(x.shape[1])
    seen = torch.ones(len(i), len(i), dtype=torch.bool)
    if layer.is_causal:
        seen = i[:, None] >= i
    if window is not None:
        seen &= i[:, None] - i < window
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    return F.linear(out.transpose(1, 2).flatten(2), layer.o_proj.weight)


@pytest.mark.parametrize("num_kv_heads", [None, 2, 1])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("rotary_base", [None, 10.0, 10_000.0])
def test_softmax_equals_sdpa(num_kv_heads: int | None, is_causal: bool, rotary_base: float | None) -> None:
    layer = SoftmaxAttention(
        C, H, num_kv_heads=num_kv_heads, is_causal=is_causal, rotary_base=rotary_base, dtype=torch.float64
    )
    x = rows()
    torch.testing.assert_close(layer(x), by_hand(layer, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("window", [1, 3, 13, 20])
def test_sliding_window_equals_sdpa_with_a_band(window: int) -> None:
    layer = SlidingWindowAttention(C, H, window_size=window, num_kv_heads=2, dtype=torch.float64)
    x = rows()
    torch.testing.assert_close(layer(x), by_hand(layer, x, window), rtol=1e-10, atol=1e-12)


def test_space_is_read_row_by_row() -> None:
    layer, x = SoftmaxAttention(C, H, dtype=torch.float64), rows(3, 5)
    assert torch.equal(layer(x).flatten(1, 2), layer(x.flatten(1, 2)))
    volume = x[:, :, :, None]
    assert torch.equal(layer(volume), layer(x)[:, :, :, None])


def test_dropout_is_for_training_only() -> None:
    layer, x = SoftmaxAttention(C, H, dropout_p=0.5, dtype=torch.float64), rows()
    assert not torch.allclose(layer(x), by_hand(layer, x))
    torch.testing.assert_close(layer.eval()(x), by_hand(layer, x), rtol=1e-10, atol=1e-12)


def test_grouped_heads_and_windows_shrink_the_state() -> None:
    sizes = {}
    for name, layer in {
        "full": SoftmaxAttention(C, H),
        "grouped": SoftmaxAttention(C, H, num_kv_heads=1),
        "window": SlidingWindowAttention(C, H, window_size=5),
    }.items():
        cache = layer.new_cache(B)
        layer(torch.randn(B, 40, C), cache=cache)
        sizes[name] = cache.nbytes
    assert sizes["full"] == 4 * B * 40 * 2 * C
    assert sizes["grouped"] * H == sizes["full"]
    assert sizes["window"] * 8 == sizes["full"]


def test_without_causality_there_is_no_cache() -> None:
    with pytest.raises(ValueError, match="is_causal=False"):
        SoftmaxAttention(C, H, is_causal=False).new_cache(B)


def test_odd_head_widths_have_no_rotary_positions() -> None:
    with pytest.raises(ValueError, match=r"even head width, got hidden_size 12 / num_heads 4 = 3.*rotary_base=None"):
        SoftmaxAttention(12, 4)
    SoftmaxAttention(12, 4, rotary_base=None)


def test_a_window_holds_at_least_the_token_itself() -> None:
    with pytest.raises(ValueError, match="window_size must be at least 1, got 0"):
        SlidingWindowAttention(C, H, window_size=0)


@pytest.mark.parametrize("groups", [1, 3])
def test_norms_of_queries_and_keys_are_qwen3_s(groups: int) -> None:
    """Transformers' layer in float64, whose norms and angles are float32; and the formula, which is not."""
    qwen = pytest.importorskip("transformers.models.qwen3.modeling_qwen3")
    from transformers import Qwen3Config

    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_attention_heads": 6, "num_key_value_heads": 6 // groups, "head_dim": 4}
    config = Qwen3Config(**sizes, rope_theta=50.0)
    config._attn_implementation = "eager"
    theirs = qwen.Qwen3Attention(config, 0).double()
    ours = SoftmaxAttention(
        12, 6, num_kv_heads=6 // groups, head_dim=4, rotary_base=50.0, qk_norm=True, dtype=torch.float64
    )
    with torch.no_grad():
        for norm in (theirs.q_norm, theirs.k_norm):
            norm.weight.uniform_(0.5, 2.0)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 11, 12, dtype=torch.float64)
    angles = qwen.Qwen3RotaryEmbedding(config)(x, torch.arange(11)[None])
    hidden = torch.full((11, 11), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    expected, _ = theirs(x, angles, hidden)
    torch.testing.assert_close(ours(x), expected, rtol=1e-6, atol=1e-6)
    q = ours.project(x).q
    plain = x @ ours.q_proj.weight.T
    plain = plain.unflatten(-1, (6, 4))
    plain = plain / (plain.square().mean(-1, keepdim=True) + 1e-6).sqrt() * ours.q_norm.weight
    torch.testing.assert_close(q, plain, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"^SoftmaxAttention.to_attention: qk_norm must be False"):
        ours.to_attention()
    with pytest.raises(TypeError, match="qk_norm is no option of routed attention"):
        MixtureOfHeads(12, 6, qk_norm=True)
