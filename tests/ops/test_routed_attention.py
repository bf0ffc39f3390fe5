"""What routed attention does not touch: rows without a gate, and in decoding the keys of heads that nobody asked."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attensor import ops
from attensor.errors import ShapeError

B, H, K, V = 2, 4, 3, 5


def tensors(queries: int, keys: int, kv_heads: int = H) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(queries + keys)
    return (
        torch.randn(B, queries, H, K, dtype=torch.float64, generator=generator),
        torch.randn(B, keys, kv_heads, K, dtype=torch.float64, generator=generator),
        torch.randn(B, keys, kv_heads, V, dtype=torch.float64, generator=generator),
    )


def some(queries: int) -> Tensor:
    return torch.rand(B, queries, H, generator=torch.Generator().manual_seed(5)) > 0.5


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("queries", [300, 261])
def test_long_inputs_are_gathered_and_are_the_definition(is_causal: bool, kv_heads: int, queries: int) -> None:
    """More rows a head than one block has, and more keys than queries; values and gradients."""
    q, k, v = tensors(queries, 300, kv_heads)
    gates = torch.where(some(queries), torch.rand(B, queries, H, dtype=torch.float64) + 0.5, 0.0)
    found = []
    for function in (ops.routed_attention, ops.routed_attention_reference):
        inputs = [x.clone().requires_grad_() for x in (q, k, v, gates)]
        out = function(*inputs, is_causal=is_causal)
        weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view_as(out)
        found.append([out, *torch.autograd.grad((out * weights).sum(), inputs)])
    for ours, expected in zip(*found):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_a_decoding_step_reads_no_keys_of_heads_that_nobody_asked(kv_heads: int) -> None:
    q, k, v = tensors(1, 2048, kv_heads)
    gates = torch.zeros(B, 1, H, dtype=torch.bool)
    gates[0, 0, 0], gates[1, 0, 3] = True, True
    expected = ops.routed_attention(q, k, v, gates, is_causal=True, form="dense")
    asked = torch.zeros(B, 1, kv_heads, 1, dtype=torch.bool)
    asked[0, 0, 0], asked[1, 0, -1] = True, True
    k, v = (torch.where(asked, x, math.nan) for x in (k, v))
    torch.testing.assert_close(ops.routed_attention(q, k, v, gates, is_causal=True), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["gathered", "dense"])
def test_queries_without_a_gate_are_not_read(form: str) -> None:
    q, k, v = tensors(7, 7)
    gates = some(7)
    spoilt = torch.where(gates[..., None], q, math.nan).requires_grad_()
    k.requires_grad_()
    out = ops.routed_attention(spoilt, k, v, gates, form=form)
    assert torch.equal(out, ops.routed_attention(q, k, v, gates, form=form))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad((out * out).sum(), (spoilt, k)))


def test_operations_are_those_of_the_rows_that_ask() -> None:
    q, k, v = tensors(300, 300)
    gates = some(300)
    with FlopCounterMode(display=False) as counter:
        ops.routed_attention(q, k, v, gates)
    assert counter.get_total_flops() == 2 * int(gates.sum()) * 300 * (K + V)


def test_gates_of_another_layout_are_refused_with_the_fix() -> None:
    q, k, v = tensors(7, 7)
    with pytest.raises(
        ShapeError, match=r"routed_attention: gates must be .*\[2, 7, 4\], got \[2, 4, 7\]\..*transpose"
    ):
        ops.routed_attention(q, k, v, some(7).mT)
    with pytest.raises(ShapeError, match=r"gates must be .*\[2, 7, 4\], got \[7, 4\]\.$"):
        ops.routed_attention(q, k, v, some(7)[0])
