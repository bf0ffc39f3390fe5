"""Features, denominators and positions against T x T weights; the recurrence on a pool of states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.errors import ShapeError
from attensor.ops import (
    Denominator,
    PositiveRandomFeatures,
    kernel_attention,
    kernel_attention_step,
    linear_attention_step,
)
from attensor.ops.feature_maps import random_projection

BATCH, TOKENS, HEADS, KV_HEADS, KEY, VALUE = 2, 37, 4, 2, 5, 3
PACKING = torch.tensor([0, 11, 11, 12, 37])


def tensors(batch: int = BATCH, tokens: int = TOKENS, kv_heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    sizes = ((HEADS, KEY), (kv_heads, KEY), (kv_heads, VALUE))
    return tuple(  # type: ignore[return-value]
        torch.randn(batch, tokens, *size, dtype=torch.float64, generator=generator).requires_grad_() for size in sizes
    )


def same_sequence(packed: bool) -> Tensor:
    if not packed:
        return torch.ones(TOKENS, TOKENS, dtype=torch.bool)
    sequence = torch.bucketize(torch.arange(TOKENS), PACKING, right=True)
    return sequence[:, None] == sequence


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    features: Callable[[Tensor], Tensor] = lambda x: x,
    turn: Callable[[Tensor], Tensor] = lambda x: x,
    log_decay: Tensor | None = None,
    denominator: Denominator | None = None,
    is_causal: bool = True,
    packed: bool = False,
) -> Tensor:
    """Every weight written out."""
    groups = HEADS // k.shape[2]
    place = torch.arange(TOKENS)
    together = same_sequence(packed)
    mask = together & (place[:, None] >= place) if is_causal else together
    outs = []
    for h in range(HEADS):
        Q, K, V = features(q)[:, :, h], features(k)[:, :, h // groups], v[:, :, h // groups]
        decay = 1.0 if log_decay is None else (log_decay[h] * (place[:, None] - place)).tril().exp()
        weights = (turn(Q[:, :, None])[:, :, 0] @ turn(K[:, :, None])[:, :, 0].mT) * decay * mask
        out = weights @ V
        if denominator is not None:
            sums = ((Q @ K.mT) * decay * mask).sum(-1, keepdim=True)
            out = out / (sums.clamp_min(denominator.minimum) + denominator.eps)
        outs.append(out)
    return torch.stack(outs, 2)


def turned(x: Tensor) -> Tensor:
    """A position map: pairs of channels turn with the token."""
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None, None] * 0.3
    first, second, rest = x[..., :2], x[..., 2:4], x[..., 4:]
    return torch.cat([first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos(), rest], -1)


def elu1(x: Tensor) -> Tensor:
    return F.elu(x) + 1


DECAY = -torch.tensor([0.0, 0.1, 0.7, 3.0], dtype=torch.float64)
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "elu+1, denominator": (
        {"feature_map": "elu+1", "denominator": Denominator()},
        {"features": elu1, "denominator": Denominator(1e-6)},
    ),
    "relu, clamped denominator": (
        {"feature_map": "relu", "denominator": Denominator(9.0)},
        {"features": torch.relu, "denominator": Denominator(9.0)},
    ),
    "silu, decay": ({"feature_map": "silu", "log_decay": DECAY}, {"features": F.silu, "log_decay": DECAY}),
    "decayed denominator": (
        {"feature_map": "elu+1", "log_decay": DECAY, "denominator": Denominator(0.0, 1e-6)},
        {"features": elu1, "log_decay": DECAY, "denominator": Denominator(0.0, 1e-6)},
    ),
    "positions in the numerator": (
        {"feature_map": "elu+1", "position_map": turned, "denominator": Denominator(0.0, 1e-6)},
        {"features": elu1, "turn": turned, "denominator": Denominator(0.0, 1e-6)},
    ),
    "function as features": ({"feature_map": torch.tanh}, {"features": torch.tanh}),
    "plain": ({}, {}),
}
# the position map above counts tokens from the start of the row, which packed sequences share
CASES = [(n, p) for n, (options, _) in FORMS.items() for p in (False, True) if not (p and "position_map" in options)]
both_backends = pytest.mark.usefixtures("backend")


def check(got: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-1, 1, got.numel(), dtype=got.dtype).view_as(got)
    for mine, theirs in zip(*(torch.autograd.grad((x * weights).sum(), inputs) for x in (got, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@both_backends
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(("name", "packed"), CASES)
def test_equals_weights_written_out(name: str, packed: bool, is_causal: bool) -> None:
    options, written_out = FORMS[name]
    if not is_causal and "log_decay" in options:
        pytest.skip("no direction to decay in")
    inputs = tensors(1 if packed else BATCH, kv_heads=KV_HEADS)
    packing = PACKING if packed else None
    got, _ = kernel_attention(*inputs, **options, is_causal=is_causal, cu_seqlens=packing)
    check(got, dense(*inputs, **written_out, is_causal=is_causal, packed=packed), inputs)


@both_backends
def test_steps_are_the_recurrence() -> None:
    q, k, v = (x.detach() for x in tensors())
    shared: dict[str, Any] = {"feature_map": "elu+1", "denominator": Denominator(), "log_decay": DECAY}
    whole, end = kernel_attention(q, k, v, **shared, output_final_state=True)
    state = q.new_zeros(BATCH, HEADS, KEY, VALUE + 1)
    for t in range(TOKENS):
        out, state = kernel_attention_step(q[:, t], k[:, t], v[:, t], state, **shared)
        torch.testing.assert_close(out, whole[:, t], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, end, rtol=1e-12, atol=1e-12)


@both_backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_features_are_summed_in_float32(dtype: torch.dtype) -> None:
    q, k, v = (x.detach().to(dtype) for x in tensors(tokens=1001))
    shared: dict[str, Any] = {"feature_map": "elu+1", "denominator": Denominator(), "output_final_state": True}
    out, state = kernel_attention(q, k, v, **shared)
    exact, _ = kernel_attention(q.double(), k.double(), v.double(), **shared)
    assert (out.dtype, state.dtype) == (dtype, torch.float32)
    assert (out.double() - exact).norm() < 4e-3 * exact.norm()


@both_backends
def test_a_query_without_weights_gets_zeros() -> None:
    q, k, v = (x.detach() for x in tensors())
    out, _ = kernel_attention(-q.abs(), k, v, feature_map="relu", denominator=Denominator())
    assert torch.equal(out, torch.zeros_like(out))


@both_backends
@pytest.mark.parametrize("length", [0.01, 5.0, 15.0, 24.0])
def test_positive_random_features_do_not_vanish(length: float) -> None:
    """Attention to equal keys is their values, however small exp(-|q|^2 / 2) is; whole and token by token."""
    x = torch.randn(1, 3, 2, 16, generator=torch.Generator().manual_seed(0))
    x = length * x / x.norm(dim=-1, keepdim=True)
    features = PositiveRandomFeatures(random_projection(1, 16, 16, generator=torch.Generator().manual_seed(1)))
    shared: dict[str, Any] = {"feature_map": features, "denominator": Denominator()}
    k, v = x[:, :1].expand_as(x), torch.arange(1.0, 25.0).view(1, 1, 2, 12).expand(1, 3, 2, 12)
    q = x.clone().requires_grad_()
    out, state = kernel_attention(q, k, v, output_final_state=True, **shared)
    torch.testing.assert_close(out, v, rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(out.square().sum(), q)[0].isfinite().all()
    step, _ = kernel_attention_step(x[:, 1], k[:, 0], v[:, 0], state, **shared)
    torch.testing.assert_close(step, v[:, 0], rtol=1e-5, atol=1e-5)


@both_backends
def test_signed_features_need_no_minimum() -> None:
    """Sums of weights of any sign divide as they are with `minimum=-inf`."""
    q, k, v = (x.detach() for x in tensors())
    out, _ = kernel_attention(q, k, v, is_causal=False, denominator=Denominator(float("-inf")))
    scores = torch.einsum("bihk,bjhk->bhij", q, k)
    assert (scores.sum(-1) < 0).any()
    expected = torch.einsum("bhij,bjhv->bihv", scores / scores.sum(-1, keepdim=True), v)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("minimum", [0.0, 0.3])
def test_signed_sums_keep_their_sign_beyond_a_minimum(minimum: float) -> None:
    sums = torch.tensor([-2.0, -0.1, -0.0, 0.0, 0.1, 2.0], requires_grad=True)
    found = Denominator(minimum, keep_sign=True).of(sums)
    near = [-0.1, 1.0, 1.0, 0.1] if minimum == 0 else [-0.3, 0.3, 0.3, 0.3]
    torch.testing.assert_close(found, torch.tensor([-2.0, *near, 2.0]))
    assert torch.autograd.grad(found.sum(), sums)[0][[0, 5]].tolist() == [1, 1]


def test_a_denominator_of_nonsense_is_refused() -> None:
    q, k, v = tensors()
    state = torch.zeros(BATCH, HEADS, KEY, VALUE + 1, dtype=torch.float64)
    for wrong in ((float("nan"),), (float("inf"),), (0, -1), (0, float("nan")), ("1",), (True,), (0, 1j)):
        with pytest.raises(ValueError, match=r"^Denominator: minimum must .*, got "):
            Denominator(*wrong)
    for wrong in ((-1.0, 0.0, True), (float("-inf"), 0.0, True), (0.0, 1e-6, True), (0.0, 0.0, 1)):
        with pytest.raises(ValueError, match=r"^Denominator: keep_sign must .*, got "):
            Denominator(*wrong)
    for denominator in ((0, 0), 1, "x"):
        with pytest.raises(TypeError, match=r"^kernel_attention: denominator must .*, got "):
            kernel_attention(q, k, v, denominator=denominator)
        with pytest.raises(TypeError, match=r"^kernel_attention_step: denominator must .*, got "):
            kernel_attention_step(q[:, 0], k[:, 0], v[:, 0], state, denominator=denominator)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position_map": turned, "denominator": Denominator(), "output_final_state": True}, "no single state"),
        ({"is_causal": False, "log_decay": DECAY}, "no direction to decay in"),
        ({"feature_map": "exp"}, "feature_map must be one of .* got 'exp'"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel_attention(*tensors(), **options)


def test_a_map_that_changes_the_width_is_named_when_decays_are_of_the_old_one() -> None:
    q, k, v = tensors()
    message = rf"log_decay has {q.shape[-1]} channels, but feature_map and position_map make 2 of the {q.shape[-1]}"
    with pytest.raises(ShapeError, match=message):
        kernel_attention(q, k, v, log_decay=-q.abs(), position_map=lambda x: x[..., :2])


def test_a_denominator_needs_a_column_of_the_state() -> None:
    state = torch.zeros(BATCH, HEADS, KEY, VALUE, dtype=torch.float64)
    with pytest.raises(ShapeError, match="kernel_attention: initial_state"):
        kernel_attention(*tensors(), denominator=Denominator(), initial_state=state)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_steps_on_a_pool_of_states(index_dtype: torch.dtype) -> None:
    """Only the named slots change; a row with slot -1 gives zeros."""
    q, k, v = (x.detach()[0, :3] for x in tensors())
    pool = torch.randn(6, HEADS, KEY, VALUE, dtype=torch.float64)
    before = pool.clone()
    slots = torch.tensor([4, -1, 0], dtype=index_dtype)
    out, returned = linear_attention_step(q, k, v, pool, log_decay=DECAY, state_slots=slots)
    expected, states = linear_attention_step(q, k, v, before[[4, 0, 0]], log_decay=DECAY)
    assert returned is pool
    torch.testing.assert_close(out[[0, 2]], expected[[0, 2]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pool[[4, 0]], states[[0, 2]], rtol=1e-12, atol=1e-12)
    assert torch.equal(pool[[1, 2, 3, 5]], before[[1, 2, 3, 5]])
    assert torch.equal(out[1], torch.zeros_like(out[1]))


@pytest.mark.parametrize(
    ("slots", "error"), [(torch.zeros(2, dtype=torch.long), ShapeError), (torch.zeros(3), TypeError)], ids=str
)
def test_slots_that_fit_no_row_are_refused(slots: Tensor, error: type[Exception]) -> None:
    q, k, v = (x.detach()[0, :3] for x in tensors())
    with pytest.raises(error, match="state_slots"):
        linear_attention_step(q, k, v, torch.zeros(6, HEADS, KEY, VALUE), state_slots=slots)
