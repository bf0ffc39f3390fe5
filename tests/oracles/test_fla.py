"""`linear_attention` against the naive functions of flash-linear-attention."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import torch
from torch import Tensor

from attensor.ops.linear_attention import linear_attention

_SPEC = importlib.util.find_spec("fla")
pytestmark = [
    pytest.mark.skipif(_SPEC is None, reason='needs flash-linear-attention: pip install "attensor[oracles]"'),
    pytest.mark.usefixtures("backend"),
]


def naive(family: str) -> ModuleType:
    """fla/ops/<family>/naive.py alone: importing its package would need triton."""
    folder = next(iter(_SPEC.submodule_search_locations))
    spec = importlib.util.spec_from_file_location(f"fla_naive_{family}", f"{folder}/ops/{family}/naive.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(*gate: int) -> tuple[Tensor, ...]:
    """q, k, v of B 2, T 77, H 3, K 5, V 7, gates of the given trailing shape, and a state; float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 77, 3, 5), (2, 77, 3, 5), (2, 77, 3, 7), (2, 77, 3, *gate), (2, 3, 5, 7)]
    q, k, v, g, state = (torch.randn(shape, generator=generator) for shape in shapes)
    return q, k, v, torch.nn.functional.logsigmoid(g), state


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


def test_gla_values_and_gradients() -> None:
    inputs = [x.requires_grad_() for x in make(5)]
    q, k, v, g, state = inputs
    theirs = naive("gla").naive_recurrent_gla(q, k, v, g, state, output_final_state=True)
    ours = linear_attention(q, k, v, log_decay=g, initial_state=state, output_final_state=True, chunk_size=16)
    grads = []
    for out, final in (theirs, ours):
        loss = (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum() + (final * state.detach()).sum()
        grads.append(torch.autograd.grad(loss, inputs))
    for mine, their in zip((*ours, *grads[1]), (*theirs, *grads[0]), strict=True):
        assert_close(mine, their)


@pytest.mark.parametrize("function", ["naive_recurrent_simple_gla", "naive_chunk_simple_gla"])
def test_simple_gla(function: str) -> None:
    q, k, v, g, state = make()
    out, final = getattr(naive("simple_gla"), function)(
        q, k, v, g, scale=0.3, initial_state=state, output_final_state=True
    )
    ours = linear_attention(
        q, k, v, log_decay=g, scale=0.3, initial_state=state, output_final_state=True, chunk_size=16
    )
    assert_close(ours[0], out)
    assert_close(ours[1], final)


def test_retention() -> None:
    q, k, v, _, _ = make()
    expected = naive("retention").naive_retention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    log_decay = torch.log1p(-(2.0 ** (-5.0 - torch.arange(3))))
    assert_close(linear_attention(q, k, v, log_decay=log_decay, chunk_size=16)[0], expected)


def test_linear_attention() -> None:
    q, k, v, _, state = make()
    out, final = naive("linear_attn").naive_recurrent_linear_attn(q, k, v, initial_state=state, output_final_state=True)
    ours = linear_attention(q, k, v, initial_state=state, output_final_state=True, chunk_size=16)
    assert_close(ours[0], out)
    assert_close(ours[1], final)
