"""Halo attention with the weights of timm's layer: outputs and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attensor import nn
from tests.oracles.timm import load_timm

load_timm()
from timm.layers.halo_attn import HaloAttn  # noqa: E402 - timm is not there before

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "strided": ({"stride": 2}, {"query_stride": 2}),
    "narrow queries": ({"dim_head": 3}, {"key_size": 6}),
    "scaled positions": ({"scale_pos_embed": True}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_timm(case: str) -> None:
    theirs, ours = CASES[case]
    torch.manual_seed(0)
    layer = HaloAttn(16, dim_out=24, num_heads=2, block_size=4, halo_size=1, **theirs).double()
    sizes: dict[str, Any] = {"key_size": 24, "value_size": 24, **ours}
    mine = nn.HaloAttention(16, 2, block_size=4, halo_size=1, output_projection=False, as_timm=True, **sizes).double()
    mine.load_state_dict(layer.state_dict())
    if case == "scaled positions":
        with torch.no_grad():
            for table in mine.pos_embed.parameters():
                table *= mine.key_dim**-0.5
    x = torch.randn(2, 16, 12, 8, dtype=torch.float64)
    found = []
    for module, first in ((layer, True), (mine, False)):
        inputs = x.clone().requires_grad_()
        out = module(inputs) if first else module(inputs.movedim(1, -1)).movedim(-1, 1)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        found.append((out.detach(), inputs.grad))
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_any_size_is_padded_and_masked() -> None:
    """A cell near the border of a map that blocks do not tile sees what it would see on one that is cut there."""
    torch.manual_seed(0)
    layer = nn.HaloAttention(8, 2, block_size=4, halo_size=1).double()
    x = torch.randn(1, 7, 6, 8, dtype=torch.float64)
    out = layer(x)
    assert out.shape == x.shape
    seen = torch.autograd.functional.jacobian(lambda y: layer(y)[0, 6, 5].sum(), x)[0].abs().sum(-1) > 0
    expected = torch.zeros(7, 6, dtype=torch.bool)
    expected[3:, 3:] = True  # its block begins at (4, 4), the halo one cell before
    assert torch.equal(seen, expected)
