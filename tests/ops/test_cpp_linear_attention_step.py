"""`linear_attention_step` in C++ against the recurrence, for any width, and shared out among threads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from tests.ops.test_linear_attention import DECAYS, make

from attensor.ops import linear_attention_reference, linear_attention_step
from attensor.ops._native.compiler import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")

in_cpp = partial(linear_attention_step, backend="cpp")
in_torch = partial(linear_attention_step, backend="torch")
EXACT = {"rtol": 1e-13, "atol": 1e-13}


def token(decay: str, dtype: torch.dtype = torch.float64, **sizes: Any) -> dict[str, Any]:
    """One token's arguments; states and decays stay as exact as they are."""
    tensors = make(decay, tokens=1, **sizes)
    q, k, v = (tensors[name].detach()[:, 0].to(dtype) for name in "qkv")
    gate = tensors["log_decay"]
    if gate is not None:
        gate = gate.detach() if gate.ndim == 1 else gate.detach()[:, 0]
    return {"q": q, "k": k, "v": v, "state": tensors["initial_state"].detach(), "log_decay": gate}


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("key_dim", "value_dim"), [(1, 1), (5, 7), (16, 33), (0, 3), (3, 0)])
@pytest.mark.parametrize(("heads", "key_heads", "decay_heads"), [(6, 3, 6), (6, 3, 3), (1, 1, 1)])
def test_it_is_the_recurrence(
    decay: str, key_dim: int, value_dim: int, heads: int, key_heads: int, decay_heads: int
) -> None:
    sizes = {"heads": heads, "key_heads": key_heads, "decay_heads": decay_heads}
    x = token(decay, key_dim=key_dim, value_dim=value_dim, **sizes)
    gate = x["log_decay"] if x["log_decay"] is None or x["log_decay"].ndim == 1 else x["log_decay"][:, None]
    tokens = {name: x[name][:, None] for name in "qkv"}
    out, state = linear_attention_reference(
        **tokens, log_decay=gate, initial_state=x["state"], scale=0.7, output_final_state=True
    )
    found = in_cpp(**x, scale=0.7)
    torch.testing.assert_close(found[0], out[:, 0], **EXACT)
    torch.testing.assert_close(found[1], state, **EXACT)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("decay", DECAYS)
def test_threads_share_out_large_states(decay: str) -> None:
    x = token(decay, batch=12, key_dim=128, value_dim=100)
    assert x["state"].nbytes > 2**22  # enough for two
    for found, expected in zip(in_cpp(**x), in_torch(**x)):
        torch.testing.assert_close(found, expected, **EXACT)
