"""`linear_attention` equals its definition whatever its chunks and segments; inputs that other files share."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attensor.ops.linear_attention import linear_attention, linear_attention_reference, linear_attention_step

pytestmark = pytest.mark.usefixtures("backend")

DECAYS = ("none", "constant", "scalar", "channel")


def make(
    decay: str,
    batch: int = 2,
    tokens: int = 37,
    heads: int = 6,
    key_heads: int = 3,
    key_dim: int = 5,
    value_dim: int = 7,
    decay_heads: int = 6,
    rows: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor | None]:
    """Arguments of `linear_attention`, all requiring gradients."""
    generator = torch.Generator().manual_seed(0)
    shape = {
        "none": None,
        "constant": (decay_heads,),
        "scalar": (batch, tokens, decay_heads),
        "channel": (batch, tokens, decay_heads, key_dim),
    }[decay]

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=dtype).requires_grad_()

    gates = None if shape is None else (-torch.rand(shape, generator=generator, dtype=dtype)).requires_grad_()
    return {
        "q": normal(batch, tokens, heads, key_dim),
        "k": normal(batch, tokens, key_heads, key_dim),
        "v": normal(batch, tokens, key_heads, value_dim),
        "log_decay": gates,
        "initial_state": normal(batch if rows is None else rows, heads, key_dim, value_dim),
    }


def weights(x: Tensor) -> Tensor:
    """Different for every element, so that a transposed gradient cannot pass."""
    return torch.linspace(-1, 2, x.numel(), dtype=x.dtype, device=x.device).sin().view(x.shape)


def results(function: Callable[..., tuple], tensors: dict[str, Tensor | None], **options: object) -> dict:
    """Output, final state, and all gradients of a weighted loss on both."""
    out, state = function(**tensors, output_final_state=True, **options)
    loss = (out * weights(out)).sum() + (state * weights(state)).sum()
    wanted = {name: x for name, x in tensors.items() if x is not None}
    grads = torch.autograd.grad(loss, list(wanted.values()), materialize_grads=True)
    return {"out": out, "state": state} | {f"gradient of {name}": g for name, g in zip(wanted, grads)}


def assert_same(actual: dict, expected: dict, tolerance: float = 1e-12) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        if value.numel():
            error = (actual[name] - value).abs().max() / value.abs().max().clamp(min=1)
            assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torch cut the work into segments of few chunks, as it does with long sequences."""
    plan = importlib.import_module("attensor.ops.linear_attention.chunked")
    monkeypatch.setattr(plan, "_CPU_SEGMENT", 600)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("tokens", [1, 8, 16, 37])
@pytest.mark.parametrize("chunk_size", [None, 8])
def test_equals_the_recurrence(decay: str, tokens: int, chunk_size: int | None) -> None:
    tensors = make(decay, tokens=tokens)
    assert_same(
        results(linear_attention, tensors, chunk_size=chunk_size, scale=0.7),
        results(linear_attention_reference, tensors, scale=0.7),
    )


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.usefixtures("small_segments")
def test_segments_change_nothing(decay: str) -> None:
    """Segments of three chunks, the last one not full."""
    tensors = make(decay, tokens=53)
    assert_same(results(linear_attention, tensors, chunk_size=2), results(linear_attention_reference, tensors))


@pytest.mark.parametrize("decay", DECAYS[1:])
@pytest.mark.parametrize(("heads", "key_heads", "decay_heads"), [(6, 3, 3), (6, 6, 6), (5, 1, 1), (1, 1, 1)])
def test_heads_may_be_grouped(decay: str, heads: int, key_heads: int, decay_heads: int) -> None:
    tensors = make(decay, heads=heads, key_heads=key_heads, decay_heads=decay_heads)
    assert_same(results(linear_attention, tensors, chunk_size=8), results(linear_attention_reference, tensors))


def test_the_reference_is_the_equation() -> None:
    tensors = make("channel", tokens=11, heads=3, decay_heads=3)
    q, k, v, log_decay, state = (tensors[n] for n in ("q", "k", "v", "log_decay", "initial_state"))
    age = log_decay.cumsum(1)
    reach = (age[:, :, None] - age[:, None]).exp() * torch.ones(11, 11, dtype=q.dtype).tril()[None, :, :, None, None]
    scores = torch.einsum("bihk,bjhk,bijhk->bhij", q, k, reach) * 5**-0.5
    expected = torch.einsum("bhij,bjhv->bihv", scores, v)
    expected = expected + torch.einsum("bihk,bhkv->bihv", q * age.exp(), state) * 5**-0.5
    out, final = linear_attention_reference(**tensors)
    assert final is None
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.usefixtures("small_segments")
def test_packed_equals_separate(decay: str, dtype: torch.dtype) -> None:
    bounds = [0, 0, 1, 18, 18, 42, 53]  # empty at the front and inside, length 1, no multiple of the chunk
    tensors = make(decay, batch=1, tokens=53, rows=6)
    packed = results(linear_attention, tensors, cu_seqlens=torch.tensor(bounds, dtype=dtype), chunk_size=8)
    assert_same(packed, results(linear_attention_reference, tensors, cu_seqlens=torch.tensor(bounds)))
    for n, (start, stop) in enumerate(itertools.pairwise(bounds)):
        alone = {name: x if x is None or x.ndim == 1 else x[:, start:stop] for name, x in tensors.items()}
        alone["initial_state"] = tensors["initial_state"][n : n + 1]
        out, state = linear_attention(**alone, output_final_state=True, chunk_size=8)
        torch.testing.assert_close(packed["out"][:, start:stop], out, rtol=0, atol=1e-13)
        torch.testing.assert_close(packed["state"][n], state[0], rtol=0, atol=1e-13)


@pytest.mark.usefixtures("unread_bounds")
@pytest.mark.parametrize("decay", DECAYS)
def test_packed_without_initial_state_ignores_what_no_sequence_owns(decay: str) -> None:
    tensors = make(decay, batch=1, tokens=23) | {"initial_state": None}
    with torch.no_grad():
        tensors["v"][:, 19:] = torch.nan
    out, _ = linear_attention(**tensors, cu_seqlens=torch.tensor([0, 8, 19]), chunk_size=8)
    assert out[:, 19:].eq(0).all()
    assert out[:, :19].isfinite().all()


@pytest.mark.parametrize("decay", ["scalar", "channel"])
def test_decays_of_one_row_are_those_of_all(decay: str) -> None:
    tensors = make(decay, batch=3, tokens=11)
    one = tensors["log_decay"].detach()[:1].clone().requires_grad_()
    every = one.detach().expand(3, *one.shape[1:]).clone().requires_grad_()
    found, expected = (results(linear_attention, {**tensors, "log_decay": x}) for x in (one, every))
    name = next(name for name in found if "log_decay" in name)
    torch.testing.assert_close(found.pop(name), expected.pop(name).sum(0, keepdim=True), rtol=0, atol=1e-12)
    assert_same(found, expected)


@pytest.mark.parametrize("decay", DECAYS)
def test_any_split_gives_the_same(decay: str) -> None:
    tensors = make(decay, tokens=41)
    whole = linear_attention(**tensors, output_final_state=True, chunk_size=8)
    state, outs = tensors["initial_state"], []
    for start, stop in ((0, 16), (16, 17), (17, 36)):
        piece = {name: x if x is None or x.ndim == 1 else x[:, start:stop] for name, x in tensors.items()}
        out, state = linear_attention(**piece | {"initial_state": state}, output_final_state=True, chunk_size=8)
        outs.append(out)
    for t in range(36, 41):
        log_decay = tensors["log_decay"]
        gate = log_decay if log_decay is None or log_decay.ndim == 1 else log_decay[:, t]
        q, k, v = (tensors[n][:, t] for n in "qkv")
        out, state = linear_attention_step(q, k, v, state, log_decay=gate)
        outs.append(out[:, None])
    torch.testing.assert_close(torch.cat(outs, 1), whole[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(state, whole[1], rtol=0, atol=1e-12)
