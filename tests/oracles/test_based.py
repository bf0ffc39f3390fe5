"""Taylor attention, full and jointly normalised, is Based's of flash-linear-attention."""

from __future__ import annotations

import pytest
import torch

from attensor import nn
from tests.oracles.test_fla import _SPEC, naive

pytestmark = pytest.mark.skipif(_SPEC is None, reason='needs flash-linear-attention: pip install "attensor[oracles]"')


def test_full_joint_taylor_attention_is_based() -> None:
    """Outputs and gradients in float64; theirs has heads first."""
    torch.manual_seed(0)
    layer = nn.TaylorAttention(15, 3, second_order="full", dtype=torch.float64)
    inputs = [torch.randn(2, 77, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    theirs = naive("based").naive_parallel_based(*(x.transpose(1, 2) for x in inputs)).transpose(1, 2)
    ours = layer.attend(nn.Heads(*inputs))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    weigh = torch.randn_like(theirs)
    for a, b in zip(*(torch.autograd.grad((weigh * x).sum(), inputs) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
