"""The kernels compiled, on a GPU: sizes that the interpreter cannot do, bfloat16, and all schedules alike."""

from __future__ import annotations

import pytest
import torch
from tests.ops.kernels.test_triton_linear_attention import chunked
from tests.ops.test_linear_attention import DECAYS, make, weights
from torch import Tensor

from attensor.ops import linear_attention_step
from attensor.ops.linear_attention import linear_attention_reference

pytest.importorskip("triton", reason="the kernels are written in triton")


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; without one see the interpreter"),
]

BOUND = {torch.bfloat16: 5e-3, torch.float16: 2e-3, torch.float32: 1e-4}  # fla's bound for bfloat16


def gradients(tensors: dict, packing: Tensor | None, schedule: str | None, dtype: torch.dtype) -> list[Tensor]:
    present = [x.requires_grad_() for x in tensors.values() if x is not None]
    if schedule == "definition":
        q, k, v, log_decay, state = tensors.values()
        known = {"log_decay": log_decay, "initial_state": state, "cu_seqlens": packing, "output_final_state": True}
        out, final = linear_attention_reference(q, k, v, **known)
    else:
        q = tensors["q"]
        out, final = chunked(*tensors.values(), packing, q.shape[-1] ** -0.5, None, schedule=schedule)
    loss = sum((x * weights(x.double()).to(dtype)).sum() for x in (out, final))
    return [out, final, *torch.autograd.grad(loss, present)]


@pytest.mark.parametrize("schedule", ["parallel", "on_chip", None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("tokens", "key_dim", "value_dim", "packed"),
    [(63, 64, 64, False), (500, 60, 100, False), (200, 128, 256, True), (130, 320, 37, False), (65, 512, 512, False)],
)
@pytest.mark.parametrize("decay", DECAYS)
def test_equals_the_definition(
    decay: str, tokens: int, key_dim: int, value_dim: int, packed: bool, dtype: torch.dtype, schedule: str | None
) -> None:
    packing = torch.tensor([0, 0, 1, 16, 101, tokens], device="cuda") if packed else None
    sizes = {"tokens": tokens, "key_dim": key_dim, "value_dim": value_dim, "heads": 4, "key_heads": 2, "decay_heads": 4}
    tensors = make(decay, batch=1 if packed else 2, rows=5 if packed else None, **sizes)
    wide = {"log_decay": torch.float32, "initial_state": torch.float32}
    low = {n: None if x is None else x.detach().to("cuda", wide.get(n, dtype)) for n, x in tensors.items()}
    exact = {n: None if x is None else x.double() for n, x in low.items()}
    expected = gradients(exact, packing, "definition", dtype)
    for mine, other in zip(gradients(low, packing, schedule, dtype), expected, strict=True):
        error = (mine.double() - other).norm() / other.norm()
        assert error <= BOUND[dtype]


@pytest.mark.parametrize("tokens", [1, 15, 64, 65, 1000])
def test_the_number_of_tokens_compiles_nothing_anew(tokens: int) -> None:
    tensors = make("scalar", tokens=tokens, heads=2, key_heads=2, decay_heads=2, key_dim=64, value_dim=64)
    low = [x.detach().to("cuda", torch.float32) for x in tensors.values()]
    parallel, _ = chunked(*low, None, 0.125, None, schedule="parallel")
    on_chip, _ = chunked(*low, None, 0.125, None, schedule="on_chip")
    torch.testing.assert_close(parallel, on_chip, rtol=1e-3, atol=1e-4)


def test_more_than_two_to_the_31_numbers() -> None:
    tokens, heads, dim = 2**18 + 65, 65, 128
    try:
        q = torch.zeros(1, tokens, heads, dim, device="cuda", dtype=torch.bfloat16)
    except torch.OutOfMemoryError:
        pytest.skip("needs about 20 GB")
    q[:, -65:] = torch.randn(1, 65, heads, dim, device="cuda")
    scale, gates = dim**-0.5, torch.full((heads,), -0.1, device="cuda")
    out, state = chunked(q, q, q, gates, None, None, scale, None, schedule="parallel")
    tail = q[:, -65:]
    expected, final = chunked(tail, tail, tail, gates, None, None, scale, None, schedule="on_chip")
    torch.testing.assert_close(out[:, -65:], expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(state, final, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("decay", DECAYS)
def test_decoding_with_slots(decay: str) -> None:
    tensors = make(decay, batch=5, tokens=1, heads=4, key_heads=2, decay_heads=4, key_dim=128, value_dim=100)
    q, k, v, log_decay, _ = (None if x is None else x.detach().to("cuda", torch.float32) for x in tensors.values())
    log_decay = log_decay if log_decay is None or log_decay.ndim == 1 else log_decay[:, 0]
    slots = torch.tensor([3, 0, -1, 7, 5], device="cuda")
    pools = [torch.randn(8, 4, 128, 100, device="cuda", generator=torch.Generator("cuda").manual_seed(1)) for _ in "ab"]
    token = [x[:, 0] for x in (q, k, v)]
    found = [
        linear_attention_step(*token, pool, log_decay=log_decay, state_slots=slots, backend=backend)[0]
        for pool, backend in zip(pools, ("triton", "torch"), strict=True)
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*pools, rtol=1e-5, atol=1e-5)
