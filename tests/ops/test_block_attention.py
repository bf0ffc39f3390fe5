"""block_attention written with slices, its padding, its refusals."""

from __future__ import annotations

import pytest
import torch

from attensor.errors import ShapeError
from attensor.ops import block_attention, softmax_attention


def make(space, *, batch=2, heads=4, kv_heads=2, key_dim=3, value_dim=5, dtype=torch.float64):
    sizes = ((heads, key_dim), (kv_heads, key_dim), (kv_heads, value_dim))
    return [torch.randn(batch, *space, *size, dtype=dtype, requires_grad=True) for size in sizes]


def test_a_window_is_a_box_and_a_grid_takes_one_token_of_every_cell():
    """Written with slices: window (1, 2) of a 2 x 3 partition, and the tokens at place (1, 2) of every 3 x 5 cell."""
    inputs = [t.detach() for t in make((6, 15))]

    def alone(rows, columns):
        part = [t[:, rows, columns] for t in inputs]
        return softmax_attention(*(t.flatten(1, 2) for t in part)).view(2, *part[0].shape[1:3], 4, 5)

    window = block_attention(*inputs, pattern="window", block_size=(3, 5))
    torch.testing.assert_close(window[:, 3:6, 10:15], alone(slice(3, 6), slice(10, 15)))
    grid = block_attention(*inputs, pattern="grid", block_size=(2, 3))  # 2 x 3 cells of 3 x 5 tokens
    torch.testing.assert_close(grid[:, 1::3, 2::5], alone(slice(1, None, 3), slice(2, None, 5)))


@pytest.mark.parametrize("pattern", ["window", "grid"])
def test_padding_changes_nothing_for_the_tokens_that_are_there(pattern):
    """7 tokens in windows of 3: the last window holds one token, which attends to itself."""
    inputs = [t.detach() for t in make((7,))]
    out = block_attention(*inputs, pattern=pattern, block_size=3)
    assert out.isfinite().all()
    if pattern == "window":
        torch.testing.assert_close(out[:, 6], inputs[2][:, 6].repeat_interleave(2, 1))


def test_what_is_refused_says_how_to_repair_it():
    q, k, v = (t.detach() for t in make((5, 7)))
    with pytest.raises(ValueError, match='pattern must be "window", "grid" or "axial"'):
        block_attention(q, k, v, pattern="diagonal", block_size=2)
    with pytest.raises(ValueError, match="needs block_size and no axis"):
        block_attention(q, k, v, pattern="window", axis=0)
    with pytest.raises(ValueError, match=r"needs axis in \[-2, 1\]"):
        block_attention(q, k, v, pattern="axial", axis=2)
    with pytest.raises(ShapeError, match="2 positive integers"):
        block_attention(q, k, v, pattern="grid", block_size=(2, 3, 4))
    with pytest.raises(ShapeError, match="2 positive integers"):
        block_attention(q, k, v, pattern="grid", block_size=0)
    with pytest.raises(ValueError, match='use pattern="axial"'):
        block_attention(q, k, v, pattern="window", block_size=2, is_causal=True)
    with pytest.raises(ShapeError, match="attn_mask must broadcast"):
        block_attention(q, k, v, pattern="window", block_size=2, attn_mask=torch.zeros(4, 2, 2))
    with pytest.raises(ShapeError, match="same grid"):
        block_attention(q, k[:, 1:], v[:, 1:], pattern="window", block_size=2)
    with pytest.raises(ShapeError, match="space axes"):
        block_attention(q[0, 0], k[0, 0], v[0, 0], pattern="window", block_size=2)
