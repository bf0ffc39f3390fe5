"""Unpadding keeps the real tokens in order, and padding puts them back where they were."""

from __future__ import annotations

import pytest
import torch

from attensor.errors import ShapeError
from attensor.nn import pad, unpad

MASK = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_real_tokens_come_back_to_their_places(dtype: torch.dtype) -> None:
    x = torch.arange(4 * 5 * 3.0).view(4, 5, 3) + 1
    packed, cu_seqlens, index = unpad(x, MASK.to(dtype))
    assert cu_seqlens.tolist() == [0, 3, 5, 5, 10]
    assert torch.equal(packed[0, :3], x[0, [1, 2, 4]])
    assert torch.equal(pad(packed, index, 4, 5), x * MASK[..., None])


def test_gradients_reach_real_tokens_only() -> None:
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    packed, _, index = unpad(x, MASK)
    pad(packed * 2, index, 4, 5).sum().backward()
    assert torch.equal(x.grad, 2.0 * MASK[..., None].expand(4, 5, 3))


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"attention_mask must be \[4, 5\], got \[5, 4\]"):
        unpad(torch.zeros(4, 5, 3), MASK.T)
