"""softmax_attention and neighborhood_attention against PyTorch's own attentions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from attensor.ops import neighborhood_attention, softmax_attention

BACKENDS = pytest.mark.parametrize("backend", ["torch", "reference"])
UNCOMPILED = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


def make(*space, kv_heads=3, dtype=torch.float64, requires_grad=True):
    return [torch.randn(2, *space, h, 5, dtype=dtype, requires_grad=requires_grad) for h in (6, kv_heads, kv_heads)]


def heads_first(*tensors):
    return [t.transpose(1, 2) for t in tensors]


@BACKENDS
@pytest.mark.parametrize("is_causal", [False, True])
def test_sdpa_values_and_gradients(is_causal, backend):
    inputs = make(13)
    with sdpa_kernel(SDPBackend.MATH):
        theirs = F.scaled_dot_product_attention(*heads_first(*inputs), is_causal=is_causal, enable_gqa=True)
    theirs = theirs.transpose(1, 2)
    ours = softmax_attention(*inputs, is_causal=is_causal, backend=backend)
    torch.testing.assert_close(ours, theirs)
    weight = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).view_as(ours)
    torch.testing.assert_close(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (ours, theirs)))


@BACKENDS
def test_fewer_queries_than_keys_are_aligned_bottom_right(backend):
    q, k, v = make(11, requires_grad=False)
    q = q[:, -4:]
    bias = torch.zeros(4, 11, dtype=q.dtype).masked_fill(~causal_lower_right(4, 11)._materialize(), -torch.inf)
    theirs = F.scaled_dot_product_attention(*heads_first(q, k, v), attn_mask=bias, enable_gqa=True)
    torch.testing.assert_close(softmax_attention(q, k, v, is_causal=True, backend=backend), theirs.transpose(1, 2))


@UNCOMPILED
@BACKENDS
def test_flex_attention_with_a_sliding_window(backend):
    q, k, v = make(67, dtype=torch.float32, requires_grad=False)
    mask = create_block_mask(lambda b, h, i, j: (j <= i) & (i - j < 20), None, None, 67, 67, device="cpu")
    theirs = flex_attention(*heads_first(q, k, v), block_mask=mask, enable_gqa=True).transpose(1, 2)
    ours = neighborhood_attention(q, k, v, window_size=20, is_causal=True, backend=backend)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@UNCOMPILED
@BACKENDS
def test_flex_attention_with_packed_sequences(backend):
    q, k, v = (t[:1] for t in make(31, dtype=torch.float32, requires_grad=False))
    bounds = torch.tensor([0, 7, 8, 31])
    sequence = torch.repeat_interleave(torch.arange(3), bounds.diff())
    mask = create_block_mask(lambda b, h, i, j: (sequence[i] == sequence[j]) & (j <= i), None, None, 31, 31, "cpu")
    theirs = flex_attention(*heads_first(q, k, v), block_mask=mask, enable_gqa=True).transpose(1, 2)
    ours = softmax_attention(q, k, v, is_causal=True, cu_seqlens=bounds, backend=backend)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
