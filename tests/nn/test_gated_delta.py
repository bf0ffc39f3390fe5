"""Gated DeltaNet beside the laws that all layers obey: its options, its first weights, its convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from attensor import nn
from attensor.nn.short_convolution import ShortConvolution, convolved


def test_the_state_dict_has_fla_s_keys_and_sizes() -> None:
    layer = nn.GatedDeltaNet(24, 4, num_qk_heads=2, head_dim=6, expand_v=1.5, conv_bias=True)
    sizes = {name: list(x.shape) for name, x in layer.state_dict().items()}
    assert sizes == {
        **{f"{name}_proj.weight": [width, 24] for name, width in (("q", 12), ("k", 12), ("v", 36), ("g", 36))},
        **{f"{name}_proj.weight": [4, 24] for name in "ab"},
        **{f"{name}_conv1d.weight": [width, 1, 4] for name, width in (("q", 12), ("k", 12), ("v", 36))},
        **{f"{name}_conv1d.bias": [width] for name, width in (("q", 12), ("k", 12), ("v", 36))},
        "A_log": [4],
        "dt_bias": [4],
        "o_norm.weight": [9],
        "o_proj.weight": [24, 36],
    }


def test_first_decays_are_those_of_the_paper() -> None:
    """Rates of 0 to 16 times steps of 0.001 to 0.1, whatever the parameters' dtype."""
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.bfloat16, 5e-2)):
        layer = nn.GatedDeltaNet(512, 128, dtype=dtype)
        rates, steps = layer.A_log.double().exp(), F.softplus(layer.dt_bias.double())
        assert 1e-3 * (1 - tolerance) <= steps.min()
        assert steps.max() <= 0.1 * (1 + tolerance)
        assert rates.min() < 2
        assert 14 < rates.max() <= 16 * (1 + tolerance)


@pytest.mark.parametrize("bias", [False, True])
def test_convolutions_are_torch_s(bias: bool) -> None:
    """Two layers side by side, with a past."""
    layers = [ShortConvolution(n, 3, bias=bias, dtype=torch.float64) for n in (5, 2)]
    x, past = torch.randn(2, 11, 7, dtype=torch.float64), torch.randn(2, 2, 7, dtype=torch.float64)
    whole = torch.cat([past, x], 1).mT
    expected = [
        F.conv1d(part, one.weight, one.bias, groups=len(one.weight))
        for part, one in zip(whole.split([5, 2], 1), layers, strict=True)
    ]
    torch.testing.assert_close(convolved(x, past, tuple(layers), None), torch.cat(expected, 1).mT)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_qk_heads": 3}, "num_qk_heads 3 does not divide num_heads 4"),
        ({"expand_v": 1.3}, "expand_v must be a multiple of 1 / 3, .*got 1.3"),
        ({"expand_v": 0.1}, "expand_v must be a multiple of 1 / 3, .*got 0.1"),
        ({"conv_size": 0}, "conv_size must be at least 1, got 0"),
    ],
)
def test_options_that_make_no_layer_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^GatedDeltaNet: {told}"):
        nn.GatedDeltaNet(24, 4, **options)


def test_half_precision_rounds_projections_alone() -> None:
    """Gates, lengths, corrections and norm are computed in float32: the state is, and errors are those of rounding."""
    torch.manual_seed(0)
    layer = nn.GatedDeltaNet(64, 4, dtype=torch.bfloat16)
    x = torch.randn(2, 200, 64, dtype=torch.bfloat16)
    cache = layer.new_cache(2)
    found, heads = layer(x, cache=cache), layer.project(x)
    assert (heads.q.dtype, heads.beta.dtype, heads.log_decay.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert {s.dtype for s in cache.states.values()} == {torch.float32}
    exact = layer.double()(x.double())
    assert (found.double() - exact).norm() <= 2e-2 * exact.norm()
