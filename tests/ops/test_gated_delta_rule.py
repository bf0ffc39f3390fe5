"""What the gated delta rule is for, and what its forms must not do; the contract holds it to the common laws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.errors import ShapeError
from attensor.ops import gated_delta_rule, gated_delta_rule_reference

SIZES = (2, 37, 3, 5, 7)  # B, T, H, K, V


def inputs() -> list[Tensor]:
    rows, tokens, heads, width, size = SIZES
    q, k, v = (torch.randn(rows, tokens, heads, n, dtype=torch.float64) for n in (width, width, size))
    return [q, F.normalize(k, dim=-1), v, torch.rand(rows, tokens, heads, dtype=torch.float64)]


def test_what_was_written_under_a_key_is_replaced() -> None:
    """A whole correction: read by the last key, the state gives the last value and nothing of what stood there."""
    q, k, v, beta = inputs()
    k[:, 20] = k[:, -1]
    _, state = gated_delta_rule(q, k, v, torch.ones_like(beta), output_final_state=True)
    assert state is not None
    torch.testing.assert_close(torch.einsum("bhk,bhkv->bhv", k[:, -1], state), v[:, -1], rtol=1e-12, atol=1e-12)


def test_a_correction_of_two_reflects() -> None:
    """With values of zero each token is a reflection, which changes no length."""
    q, k, v, beta = inputs()
    start = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    two = torch.full_like(beta, 2.0)
    _, state = gated_delta_rule(q, k, torch.zeros_like(v), two, initial_state=start, output_final_state=True)
    assert state is not None
    assert not torch.allclose(state, start)
    torch.testing.assert_close(state.norm(dim=-2), start.norm(dim=-2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 37, 100, None])
def test_chunks_change_no_result(chunk_size: int | None) -> None:
    decay = -torch.rand(2, 37, 3, dtype=torch.float64)
    decay[0, 5:9] = -float("inf")
    decay[1, ::4] = -1e5
    found = gated_delta_rule(*inputs_seeded(), log_decay=decay, output_final_state=True, chunk_size=chunk_size)
    expected = gated_delta_rule_reference(*inputs_seeded(), log_decay=decay, output_final_state=True)
    for got, known in zip(found, expected, strict=True):
        torch.testing.assert_close(got, known, rtol=1e-11, atol=1e-11)


def inputs_seeded() -> list[Tensor]:
    torch.manual_seed(3)
    return inputs()


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_no_tokens_pass_the_state_on_as_a_new_tensor(backend: str, dtype: torch.dtype) -> None:
    q, k, v, beta = (x[:, :0].to(dtype) for x in inputs())
    start = torch.randn(2, 3, 5, 7, dtype=dtype).requires_grad_()
    out, state = gated_delta_rule(q, k, v, beta, initial_state=start, output_final_state=True, backend=backend)
    assert state is not None
    assert (out.shape, out.dtype) == ((2, 0, 3, 7), dtype)
    assert state.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(state, start.to(state.dtype))
    assert state.data_ptr() != start.data_ptr()
    assert v.data_ptr() == 0 or out.data_ptr() != v.data_ptr()
    (grad,) = torch.autograd.grad(state.square().sum(), start)
    torch.testing.assert_close(grad, 2 * start.detach())


def test_weak_gates_beside_strong_ones_keep_their_digits() -> None:
    """Gradients of the decays of float32 against float64: sums over a chunk cancel where a token forgets all."""
    q, k, v, beta = inputs_seeded()
    decay = -1e-3 * torch.rand(2, 37, 3, dtype=torch.float64)
    decay[:, ::6] = -50.0
    grads = []
    for dtype in (torch.float32, torch.float64):
        tracked = decay.to(dtype).requires_grad_()
        out, _ = gated_delta_rule(*(x.to(dtype) for x in (q, k, v, beta)), log_decay=tracked)
        grads.append(torch.autograd.grad((out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum(), tracked)[0])
    assert (grads[0].double() - grads[1]).norm() <= 1e-5 * grads[1].norm()


def test_sizes_that_do_not_fit_are_refused_by_name() -> None:
    q, k, v, beta = inputs()
    for changed, told in (
        ({"beta": beta[..., :2]}, r"beta must be \[B, T, H\] = \[2, 37, 3\].*got \[2, 37, 2\]"),
        ({"log_decay": beta[:, 1:]}, r"log_decay must be .*got \[2, 36, 3\]"),
        ({"initial_state": v[:, 0]}, r"initial_state must be \[B, H, K, V\] = \[2, 3, 5, 7\], got \[2, 3, 7\]"),
    ):
        with pytest.raises(ShapeError, match=f"^gated_delta_rule: {told}"):
            gated_delta_rule(**{"q": q, "k": k, "v": v, "beta": beta, **changed})
    with pytest.raises(ValueError, match=r"^gated_delta_rule: chunk_size must be at least 1 or None \(32\), got 0"):
        gated_delta_rule(q, k, v, beta, chunk_size=0)
