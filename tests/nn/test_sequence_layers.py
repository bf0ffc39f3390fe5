"""Laws of every layer over sequences, in the variants that the catalogue's cards do not build."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import attensor
from attensor.nn import (
    GatedLinearAttention,
    LightningAttention,
    LinearAttention,
    RelativeKernelAttention,
    Retention,
    ScalarGatedLinearAttention,
    SlidingWindowAttention,
    SoftmaxAttention,
    TokenCache,
)

C, H = 24, 4

VARIANTS: dict[str, Callable[..., torch.nn.Module]] = {
    "softmax": SoftmaxAttention,
    "softmax grouped": partial(SoftmaxAttention, num_kv_heads=2, rotary_base=100.0),
    "softmax without positions": partial(SoftmaxAttention, num_kv_heads=1, rotary_base=None),
    "window 5": partial(SlidingWindowAttention, window_size=5),
    "window 1": partial(SlidingWindowAttention, window_size=1, num_kv_heads=2),
    "window beyond": partial(SlidingWindowAttention, window_size=50, rotary_base=None),
    "relative kernel": partial(RelativeKernelAttention, num_features=5, max_distance=4),
    "linear": LinearAttention,
    "linear normalised": partial(LinearAttention, feature_map="elu+1", normalize=True),
    "linear wide": partial(
        LinearAttention, num_kv_heads=2, key_size=8, value_size=36, norm="layer", output_gate="swish"
    ),
    "lightning last": partial(LightningAttention, layer_index=2, num_layers=3),
    "lightning linear": partial(LightningAttention, slopes="linear", layer_index=1, num_layers=3),
    "retention": Retention,
    "scalar grouped": partial(ScalarGatedLinearAttention, num_kv_heads=2),
    "gla": GatedLinearAttention,
    "gla grouped": partial(GatedLinearAttention, num_kv_heads=2, norm="layer", gate_bias=True, clamp_min=-0.04),
}
EVERY = pytest.mark.parametrize("variant", VARIANTS)


def build(variant: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return VARIANTS[variant](C, H, dtype=torch.float64)


def rows(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, length, C, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@EVERY
def test_equals_the_definition(variant: str) -> None:
    layer, x = build(variant), rows(2, 19)
    fast = layer(x)
    with attensor.backend("reference"):
        torch.testing.assert_close(fast, layer(x), rtol=1e-10, atol=1e-10)


@EVERY
@pytest.mark.parametrize("recorded", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("pieces", [(17,), (1,) * 17, (3, 1, 1, 7, 5), (1, 16)], ids=str)
def test_any_split_gives_the_whole(variant: str, pieces: tuple[int, ...], recorded: bool) -> None:
    """With the cache exported and imported at every boundary."""
    layer, x = build(variant), rows(2, 17)
    with torch.set_grad_enabled(recorded):
        cache, outs = layer.new_cache(2), []
        for piece in x.split(pieces, 1):
            outs.append(layer(piece, cache=cache))
            exported, cache = cache.state_dict(), layer.new_cache(2, max_length=3)
            cache.load_state_dict(exported)
    assert cache.length == 17
    torch.testing.assert_close(torch.cat(outs, 1), layer(x), rtol=1e-10, atol=1e-10)


@EVERY
@pytest.mark.parametrize("pieces", [(12,), (1,) * 12, (2, 1, 5, 4)], ids=str)
def test_padding_at_the_beginning_of_rows_is_seen_by_nobody(variant: str, pieces: tuple[int, ...]) -> None:
    """Outputs and gradients of the real tokens are those of the rows alone, whatever stands at padding."""
    layer, x, counts = build(variant), rows(3, 12), [0, 7, 3]
    x[1, :7], x[2, :3] = 50.0, -50.0
    x.requires_grad_()
    cache = layer.new_cache(3)
    cache.first = torch.tensor(counts)
    padded = torch.cat([layer(piece, cache=cache) for piece in x.split(pieces, 1)], 1)
    got = torch.cat([row[count:] for row, count in zip(padded, counts)])
    alone = torch.cat([layer(row[None, count:])[0] for row, count in zip(x, counts)])
    torch.testing.assert_close(got, alone, rtol=1e-10, atol=1e-10)
    weight = torch.linspace(-1, 1, got.numel(), dtype=x.dtype).view_as(got)
    split, whole = (torch.autograd.grad((out * weight).sum(), [x, *layer.parameters()]) for out in (got, alone))
    for a, b in zip(split, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@EVERY
def test_the_three_steps_are_the_layer(variant: str) -> None:
    """What acts between attention and output projection acts on the heads: without one, its share is gone."""
    layer, x = build(variant), rows(2, 9)
    attended = []
    attend = layer.attend
    layer.attend = lambda heads, **options: (
        attended.append(attend(heads, **options)) or attended[0] * (torch.arange(H)[:, None] != 2)
    )
    without = layer(x)
    assert attended[0].shape[:3] == (2, 9, H)
    layer.attend = lambda heads, **options: attended[0]
    heads = layer.project(x, torch.arange(9) if layer.uses_positions else None)
    whole = layer.merge(attended[0], heads)
    assert torch.equal(layer(x), whole)
    assert not torch.allclose(without, whole)


@EVERY
def test_gradients_pass_through_a_cache(variant: str) -> None:
    layer, x = build(variant), rows(2, 9).requires_grad_()
    weight = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    cache = layer.new_cache(2, max_length=9)
    pieces = torch.cat([layer(piece, cache=cache) for piece in x.split([4, 1, 4], 1)], 1)
    split, whole = (torch.autograd.grad((out * weight).sum(), [x, *layer.parameters()]) for out in (pieces, layer(x)))
    for got, expected in zip(split, whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@EVERY
def test_packed_sequences_equal_separate_ones(variant: str) -> None:
    layer, lengths = build(variant), [6, 1, 11]
    sequences = [rows(1, n, seed=n) for n in lengths]
    packed = layer(torch.cat(sequences, 1), cu_seqlens=torch.tensor([0, 6, 7, 18]))
    torch.testing.assert_close(packed, torch.cat([layer(s) for s in sequences], 1), rtol=1e-10, atol=1e-10)


@EVERY
def test_nothing_leaks_from_the_future(variant: str) -> None:
    layer, x = build(variant), rows(2, 19)
    changed = x.clone()
    changed[:, 11] += 1
    assert torch.equal(layer(x)[:, :11], layer(changed)[:, :11])
    assert not torch.equal(layer(x)[:, 11], layer(changed)[:, 11])


@EVERY
def test_the_card_knows_the_state(variant: str) -> None:
    layer = build(variant).float()
    (card,) = [c for c in attensor.catalogue.mechanisms().values() if c.layer.endswith(f":{type(layer).__name__}")]
    cache = layer.new_cache(3)
    layer(rows(3, 13).float(), cache=cache)
    grouped = cache.nbytes * H // getattr(layer, "num_kv_heads", H) if isinstance(cache, TokenCache) else cache.nbytes
    assert card.cost("state_bytes", B=3, **layer.cost_sizes((13,))) == grouped


@EVERY
def test_weights_travel_and_are_drawn_anew(variant: str) -> None:
    layer, other, x = build(variant), build(variant, seed=1), rows(2, 5)
    expected = layer(x)
    assert not torch.allclose(other(x), expected)
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other(x), expected)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    torch.manual_seed(2)
    other.reset_parameters()
    assert not torch.allclose(other(x), expected)


@EVERY
def test_a_layer_built_without_memory_is_filled_by_its_reset(variant: str) -> None:
    with torch.device("meta"):
        layer = VARIANTS[variant](C, H, dtype=torch.float64)
    layer = layer.to_empty(device="cpu")
    for tensor in layer.state_dict().values():
        tensor.fill_(float("nan"))
    layer.reset_parameters()
    assert layer(rows(2, 5)).isfinite().all()


@EVERY
def test_says_what_it_is(variant: str) -> None:
    text = repr(build(variant))
    assert f"hidden_size={C}" in text
    assert f"num_heads={H}" in text


@EVERY
def test_a_cache_and_packing_exclude_each_other(variant: str) -> None:
    layer = build(variant)
    with pytest.raises(ValueError, match=rf"{type(layer).__name__}: cache and cu_seqlens exclude"):
        layer(rows(1, 4), cache=layer.new_cache(1), cu_seqlens=torch.tensor([0, 4]))


@EVERY
def test_sizes_are_checked(variant: str) -> None:
    layer, who = build(variant), type(build(variant)).__name__
    with pytest.raises(ValueError, match=rf"{who}: .* end in hidden_size = 24 channels, got \[2, 24, 7\].*movedim"):
        layer(rows(2, 7).mT)
    with pytest.raises(ValueError, match=rf"{who}: hidden_states must be \[B, T, C\].*got \[7, 24\]"):
        layer(rows(2, 7)[0])
    with pytest.raises(ValueError, match=rf"{who}: hidden_size 24 is not a multiple of num_heads 5"):
        VARIANTS[variant](C, 5)


@pytest.mark.parametrize("layer", [SoftmaxAttention, SlidingWindowAttention, LinearAttention, GatedLinearAttention])
def test_key_value_heads_must_divide_the_heads(layer: type[torch.nn.Module]) -> None:
    with pytest.raises(ValueError, match=rf"{layer.__name__}: num_kv_heads 3 does not divide num_heads 4"):
        layer(C, H, num_kv_heads=3)
