"""One token at a time in a fused kernel: equal to the torch step, with states in the slots of a pool."""

from __future__ import annotations

import pytest
import torch
from tests.ops.test_linear_attention import DECAYS, make, weights
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops import linear_attention, linear_attention_step

pytest.importorskip("triton", reason="the kernels are written in triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {"tokens": 3, "heads": 4, "key_heads": 2, "key_dim": 5, "value_dim": 37}


def tokens(decay: str, batch: int = 3, decay_heads: int = 4) -> list[Tensor | None]:
    """q, k, v, log_decay of one token for each row, and states."""
    tensors = make(decay, batch=batch, decay_heads=decay_heads, **SIZES)
    one = [None if x is None else x.detach().float().to(DEVICE) for x in tensors.values()]
    return [x if x is None or x.ndim == 1 or i == 4 else x[:, 0] for i, x in enumerate(one)]


@pytest.mark.parametrize("decay_heads", [2, 4])
@pytest.mark.parametrize("decay", DECAYS)
def test_equals_the_torch_step(decay: str, decay_heads: int) -> None:
    results = []
    for backend in ("triton", "torch"):
        arguments = [None if x is None else x.requires_grad_() for x in tokens(decay, 2, decay_heads)]
        q, k, v, log_decay, state = arguments
        out, new = linear_attention_step(q, k, v, state, log_decay=log_decay, backend=backend)
        results.append([out, new])
        if (decay, decay_heads) == ("scalar", 2):  # the other gradients are those of `linear_attention`
            loss = (out * weights(out)).sum() + (new * weights(new)).sum()
            results[-1] += torch.autograd.grad(loss, arguments)
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("decay", DECAYS)
def test_slots_of_a_pool(decay: str, dtype: torch.dtype) -> None:
    """Rows read and write their own slots, a skipped row gives zeros, every other slot stays as it was."""
    q, k, v, log_decay, _ = tokens(decay)
    slots = torch.tensor([4, -1, 0], dtype=dtype, device=DEVICE)
    before = torch.randn(6, 4, 5, 37, device=DEVICE)
    pool = before.clone()
    out, same = linear_attention_step(
        q, k, v, pool, log_decay=log_decay, scale=0.3, state_slots=slots, backend="triton"
    )
    assert same is pool
    rows = [0, 2]
    gate = log_decay if log_decay is None or log_decay.ndim == 1 else log_decay[rows]
    expected, states = linear_attention_step(
        q[rows], k[rows], v[rows], before[[4, 0]], log_decay=gate, scale=0.3, backend="torch"
    )
    torch.testing.assert_close(out[rows], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pool[[4, 0]], states, rtol=1e-5, atol=1e-5)
    assert out[1].eq(0).all()
    assert pool[[1, 2, 3, 5]].equal(before[[1, 2, 3, 5]])


def test_a_pool_with_strides_is_changed_in_place() -> None:
    q, k, v, _, _ = tokens("none")
    slots = torch.tensor([1, 2, 0], device=DEVICE)
    pool = torch.randn(3, 4, 37, 5, device=DEVICE).mT
    expected = pool.clone(memory_format=torch.contiguous_format)
    linear_attention_step(q, k, v, expected, state_slots=slots, backend="torch")
    linear_attention_step(q, k, v, pool, state_slots=slots, backend="triton")
    torch.testing.assert_close(pool, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_prefill_then_steps_is_the_whole() -> None:
    tensors = [None if x is None else x.detach().float().to(DEVICE) for x in make("channel", tokens=19).values()]
    q, k, v, log_decay, state = tensors
    known = {"output_final_state": True, "backend": "triton"}
    whole, last = linear_attention(q, k, v, log_decay=log_decay, initial_state=state, **known)
    cut = [x[:, :17] for x in (q, k, v)]
    _, state = linear_attention(*cut, log_decay=log_decay[:, :17], initial_state=state, **known)
    for t in (17, 18):
        step = [x[:, t] for x in (q, k, v)]
        out, state = linear_attention_step(*step, state, log_decay=log_decay[:, t], backend="triton")
        torch.testing.assert_close(out, whole[:, t], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


def test_half_precision_keeps_the_state_in_float32() -> None:
    q, k, v, log_decay, state = tokens("scalar")
    half = [x.half() for x in (q, k, v)]
    out, new = linear_attention_step(*half, state, log_decay=log_decay, backend="triton")
    exact, _ = linear_attention_step(*(x.float() for x in half), state, log_decay=log_decay, backend="torch")
    assert (out.dtype, new.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(out.float(), exact, rtol=2e-3, atol=2e-3)


def test_wrong_gates_are_named() -> None:
    q, k, v, _, state = tokens("none")
    with pytest.raises(ShapeError, match="log_decay"):
        linear_attention_step(q, k, v, state, log_decay=torch.zeros(3, 3, device=DEVICE), backend="triton")
