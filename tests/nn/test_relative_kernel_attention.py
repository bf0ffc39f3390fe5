"""The layer around kernelised attention with relative positions."""

from __future__ import annotations

import pytest
import torch

from attensor.nn import RelativeKernelAttention
from attensor.ops import PositiveRandomFeatures, relative_kernel_attention_reference


def build(seed: int = 0, **options) -> RelativeKernelAttention:
    torch.manual_seed(seed)
    options = {"num_features": 7, "max_distance": 5, "dtype": torch.float64, **options}
    layer = RelativeKernelAttention(12, 3, **options)
    torch.nn.init.normal_(layer.relative_bias)
    return layer


def test_the_layer_is_its_operator_between_projections() -> None:
    layer, x = build(), torch.randn(2, 11, 12).double()
    q, k, v = (p(x).unflatten(-1, (3, 4)) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    out = relative_kernel_attention_reference(
        q,
        k,
        v,
        relative_bias=layer.relative_bias,
        feature_map=PositiveRandomFeatures(layer.projection, normalize=True),
        is_causal=True,
    )
    torch.testing.assert_close(layer(x), layer.o_proj(out.flatten(-2)), rtol=0, atol=1e-12)


def test_lengths_of_queries_and_keys_do_not_matter_when_normalised() -> None:
    layer, x = build(), torch.randn(2, 11, 12).double()
    before = layer(x)
    with torch.no_grad():
        layer.q_proj.weight.mul_(7.0)
        layer.k_proj.weight.mul_(0.3)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-9)
    plain = build(normalize=False)
    other = plain(x)
    with torch.no_grad():
        plain.k_proj.weight.mul_(0.3)
    assert not torch.allclose(plain(x), other)


def test_new_layers_have_no_bias_and_a_projection_of_each_head() -> None:
    layer = RelativeKernelAttention(12, 3, num_features=7, max_distance=5)
    assert layer.relative_bias.shape == (3, 9)
    assert not layer.relative_bias.any()
    assert layer.projection.shape == (3, 7, 4)
    assert not torch.equal(layer.projection[0], layer.projection[1])
    assert "projection" in layer.state_dict()
    assert "projection" not in dict(layer.named_parameters())


def test_a_layer_from_the_meta_device_is_as_good_as_one_built() -> None:
    layer = RelativeKernelAttention(12, 3, num_features=7, max_distance=5, device="meta").to_empty(device="cpu")
    torch.manual_seed(3)
    layer.reset_parameters()
    assert layer.projection.square().mean() == pytest.approx(1.0, rel=0.4)
    assert not layer.relative_bias.any()
    assert layer(torch.randn(2, 5, 12)).isfinite().all()


def test_the_cache_holds_features_in_single_precision() -> None:
    layer = build(dtype=torch.bfloat16)
    cache = layer.new_cache(2, 11)
    x = torch.randn(2, 11, 12).bfloat16()
    with torch.no_grad():
        steps = torch.cat([layer(piece, cache=cache) for piece in x.split([6, 1, 1, 1, 1, 1], 1)], 1)
        whole = layer(x)
    assert cache.nbytes == 4 * 2 * 11 * 3 * (7 + 4)
    torch.testing.assert_close(steps, whole, rtol=2e-2, atol=2e-2)


def test_grids_have_a_bias_of_every_pair_of_offsets() -> None:
    layer = build(space_dims=2, is_causal=False)
    assert layer.relative_bias.shape == (3, 9, 9)
    x = torch.randn(2, 4, 6, 12).double()
    turned = build(space_dims=2, is_causal=False)
    with torch.no_grad():
        turned.relative_bias.copy_(layer.relative_bias.mT)
    torch.testing.assert_close(turned(x.transpose(1, 2)).transpose(1, 2), layer(x), rtol=0, atol=1e-12)
    assert not torch.allclose(layer(x.transpose(1, 2)).transpose(1, 2), layer(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space_dims": 2}, "space_dims must be 1, or 2 with is_causal=False"),
        ({"space_dims": 3, "is_causal": False}, "got 3"),
        ({"max_distance": 0}, "max_distance"),
        ({"num_features": 0}, "num_features"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"RelativeKernelAttention: .*{message}"):
        RelativeKernelAttention(12, 3, **options)


def test_only_causal_layers_have_a_cache() -> None:
    with pytest.raises(ValueError, match="there is no cache"):
        build(is_causal=False).new_cache(2)
    layer = build()
    with pytest.raises(ValueError, match="exclude each other"):
        layer(torch.randn(1, 4, 12).double(), cache=layer.new_cache(1), cu_seqlens=torch.tensor([0, 4]))
