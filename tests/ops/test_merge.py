"""Parts of the keys merged by merge_attention are all keys at once."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from attensor.errors import ShapeError
from attensor.ops import merge_attention, merge_attention_reference, softmax_attention


def make(batch=2, queries=5, keys=11, heads=4, kv_heads=2, key_dim=3, value_dim=7):
    sizes = ((queries, heads, key_dim), (keys, kv_heads, key_dim), (keys, kv_heads, value_dim))
    return [torch.randn(batch, *size, dtype=torch.float64, requires_grad=True) for size in sizes]


def weigh(x):
    return (x * torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view_as(x)).sum()


def merged(q, k, v, *, mask=None, bounds=(0, 4, 5, 11), merge=merge_attention):
    parts = []
    for a, b in itertools.pairwise(bounds):
        part = None if mask is None else mask[:, a:b]
        parts.append(softmax_attention(q, k[:, a:b], v[:, a:b], attn_mask=part, return_lse=True))
    return merge([out for out, _ in parts], [lse for _, lse in parts])


@pytest.mark.parametrize("merge", [merge_attention, merge_attention_reference])
@pytest.mark.parametrize("bounds", [(0, 11), (0, 4, 11), (0, 4, 4, 5, 11)], ids=str)
def test_parts_of_the_keys_merged_are_all_keys(bounds, merge):
    """Query 1 sees nothing, query 3 nothing of the first part; autograd's anomaly detection finds no NaN."""
    inputs = make()
    mask = torch.rand(5, 11) > 0.3
    mask[1], mask[3, :4] = False, False
    whole = softmax_attention(*inputs, attn_mask=mask, return_lse=True)
    parts = merged(*inputs, mask=mask, bounds=bounds, merge=merge)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-10)
    assert parts[0][:, 1].eq(0).all()
    assert parts[1][:, 1].eq(-math.inf).all()
    with torch.autograd.set_detect_anomaly(True):
        found, expected = (torch.autograd.grad(weigh(out) + weigh(lse[:, 2:]), inputs) for out, lse in (parts, whole))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_large_log_sum_exps_and_low_precision():
    q, k, v = (t.detach().bfloat16() * 30 for t in make())
    out, lse = merged(q, k, v)
    whole, whole_lse = softmax_attention(q, k, v, return_lse=True)
    assert out.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    torch.testing.assert_close((out, lse), (whole, whole_lse), rtol=2e-2, atol=2e-2)
    far = merge_attention([out.float()] * 2, [lse + 1e4, lse - 1e4])
    torch.testing.assert_close(far, (out.float(), lse + 1e4))


def test_what_is_refused():
    out, lse = torch.randn(2, 5, 4, 7), torch.randn(2, 5, 4)
    with pytest.raises(ShapeError, match="at least one"):
        merge_attention([], [])
    with pytest.raises(ShapeError, match="as many"):
        merge_attention([out, out], [lse])
    with pytest.raises(ShapeError, match=r"outs must all be \[2, 5, 4, 7\]"):
        merge_attention([out, out[:1]], [lse, lse])
    with pytest.raises(ShapeError, match=r"lses must all be \[2, 5, 4\]"):
        merge_attention([out], [lse[..., None]])
    with pytest.raises(TypeError, match="outs must share one floating dtype"):
        merge_attention([out, out.double()], [lse, lse])
