"""Features, denominators, weights on the keys, the left product and the bidirectional form, against T x T weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.errors import ShapeError
from attensor.ops import Denominator, linear_attention, linear_attention_reference, linear_attention_step

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
    weighted: bool = False,
    is_causal: bool = True,
    packed: bool = False,
    scale: float,
) -> Tensor:
    """Every weight written out: loops over heads and, for the weights on the keys, over sequences."""
    groups = HEADS // k.shape[2]
    place = torch.arange(TOKENS)
    together = same_sequence(packed)
    mask = together & (place[:, None] >= place) if is_causal else together
    outs = []
    for h in range(HEADS):
        Q, K, V = features(q)[:, :, h], features(k)[:, :, h // groups], v[:, :, h // groups]
        if weighted:
            pieces = []
            for start in (i for i in range(TOKENS) if i == 0 or not together[i, i - 1]):
                rows = together[start]
                w = torch.softmax(KEY**-0.5 * (K[:, rows] @ Q[:, rows].mean(1)[..., None]), 1)
                pieces.append(rows.sum() * w * K[:, rows])
            K = torch.cat(pieces, 1)
        decay = 1.0 if log_decay is None else (log_decay[h] * (place[:, None] - place)).tril().exp()
        weights = (turn(Q[:, :, None])[:, :, 0] @ turn(K[:, :, None])[:, :, 0].mT) * decay * mask
        out = scale * weights @ V
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


@pytest.mark.parametrize(
    ("algorithm", "backend"),
    [("la1", "torch"), ("la1", "reference"), ("la2", "cpp"), ("la2", "torch"), ("la2", "reference")],
    indirect=["backend"],
)
@pytest.mark.parametrize(("name", "packed"), CASES)
def test_causal_forms(name: str, algorithm: str, packed: bool, backend: str) -> None:
    options, written_out = FORMS[name]
    inputs = tensors(1 if packed else BATCH, kv_heads=KV_HEADS)
    got, _ = linear_attention(
        *inputs,
        **options,
        scale=0.7,
        algorithm=algorithm,
        chunk_size=8,
        cu_seqlens=PACKING if packed else None,
        backend=backend,
    )
    check(got, dense(*inputs, **written_out, packed=packed, scale=0.7), inputs)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("name", "packed"), [(n, p) for n, p in CASES if "log_decay" not in FORMS[n][0]])
def test_bidirectional_forms(name: str, weighted: bool, packed: bool, backend: str) -> None:
    options, written_out = FORMS[name]
    inputs = tensors(1 if packed else BATCH, kv_heads=KV_HEADS)
    got, _ = linear_attention(
        *inputs,
        **options,
        scale=0.7,
        is_causal=False,
        kv_weighting="global-query" if weighted else None,
        cu_seqlens=PACKING if packed else None,
        backend=backend,
    )
    check(got, dense(*inputs, **written_out, weighted=weighted, is_causal=False, packed=packed, scale=0.7), inputs)


@both_backends
@pytest.mark.parametrize("options", [{}, {"is_causal": False}, {"algorithm": "la1", "log_decay": DECAY}], ids=str)
@pytest.mark.parametrize("denominator", [None, Denominator()])
@pytest.mark.parametrize("packed", [False, True])
def test_states_go_on_where_they_ended(options: dict[str, Any], denominator: Denominator | None, packed: bool) -> None:
    """Initial and final states with gradients, against the reference; the denominator's sum is the last column."""
    q, k, v = tensors(1 if packed else BATCH)
    rows = len(PACKING) - 1 if packed else BATCH
    columns = VALUE + (denominator is not None)
    state = torch.rand(rows, HEADS, KEY, columns, dtype=torch.float64).requires_grad_()
    shared = {
        **options,
        "feature_map": "elu+1",
        "denominator": denominator,
        "initial_state": state,
        "output_final_state": True,
        "cu_seqlens": PACKING if packed else None,
    }
    got, last = linear_attention(q, k, v, **shared)
    expected, expected_last = linear_attention_reference(q, k, v, **shared)
    check(
        torch.cat([got.flatten(), last.flatten()]),
        torch.cat([expected.flatten(), expected_last.flatten()]),
        (q, k, v, state),
    )
    assert last.shape == state.shape


@both_backends
def test_two_halves_are_the_whole() -> None:
    q, k, v = tensors()
    shared: dict[str, Any] = {"feature_map": "elu+1", "denominator": Denominator(), "log_decay": DECAY}
    whole, end = linear_attention(q, k, v, **shared, output_final_state=True)
    first, middle = linear_attention(q[:, :17], k[:, :17], v[:, :17], **shared, output_final_state=True)
    second, last = linear_attention(
        q[:, 17:], k[:, 17:], v[:, 17:], **shared, initial_state=middle, output_final_state=True
    )
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, end, rtol=1e-12, atol=1e-12)


@both_backends
@pytest.mark.parametrize("decay", [-0.3, -40.0, float("-inf")])
def test_left_product_and_chunks_agree_on_any_decay(decay: float) -> None:
    q, k, v = (x.detach() for x in tensors())
    log_decay = torch.full((HEADS,), decay, dtype=torch.float64)
    left, left_state = linear_attention(
        q, k, v, log_decay=log_decay, algorithm="la1", chunk_size=8, output_final_state=True
    )
    right, right_state = linear_attention(q, k, v, log_decay=log_decay, output_final_state=True)
    assert left.isfinite().all()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(left_state, right_state, rtol=1e-12, atol=1e-12)


@both_backends
def test_left_product_gives_slopes_a_gradient() -> None:
    q, k, v = tensors()
    grads = []
    for algorithm in ("la1", "la2"):
        log_decay = DECAY.clone().requires_grad_()
        out, _ = linear_attention(q, k, v, log_decay=log_decay, algorithm=algorithm, chunk_size=8)
        grads.append(torch.autograd.grad((out**2).sum(), log_decay)[0])
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("options", [{"algorithm": "la1"}, {"is_causal": False}], ids=str)
def test_transforms_and_compilation(options: dict[str, Any]) -> None:
    q, k, v = (x.detach() for x in tensors())

    def loss(q: Tensor, k: Tensor) -> Tensor:
        out, _ = linear_attention(q[None], k[None], v[:1], feature_map="elu+1", denominator=Denominator(), **options)
        return (out**3).sum()

    grads = torch.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(0, None))(q, k[0])
    each = [torch.func.grad(loss, argnums=(0, 1))(q[b], k[0]) for b in range(BATCH)]
    for got, expected in zip(grads, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(expected))
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q[0], k[0]), loss(q[0], k[0]))


@both_backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_features_are_summed_in_float32(dtype: torch.dtype) -> None:
    q, k, v = (x.detach().to(dtype) for x in tensors(tokens=1001))
    shared: dict[str, Any] = {"feature_map": "elu+1", "denominator": Denominator(), "output_final_state": True}
    out, state = linear_attention(q, k, v, **shared)
    exact, _ = linear_attention(q.double(), k.double(), v.double(), **shared)
    assert (out.dtype, state.dtype) == (dtype, torch.float32)
    assert (out.double() - exact).norm() < 4e-3 * exact.norm()


@both_backends
def test_a_query_without_weights_gets_zeros() -> None:
    q, k, v = (x.detach() for x in tensors())
    out, _ = linear_attention(-q.abs(), k, v, feature_map="relu", denominator=Denominator())
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "la3"}, "algorithm must be 'la1' or 'la2', got 'la3'"),
        ({"kv_weighting": "mean", "is_causal": False}, "kv_weighting must be"),
        ({"kv_weighting": "global-query"}, "needs is_causal=False"),
        ({"is_causal": False, "log_decay": DECAY}, "no direction to decay in"),
        ({"algorithm": "la1", "log_decay": torch.zeros(BATCH, TOKENS, HEADS)}, "'la1' takes no decay or one per head"),
        ({"position_map": turned, "denominator": Denominator(), "output_final_state": True}, "no single state"),
        ({"feature_map": "gelu"}, "elu\\+1"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_attention(*tensors(), **options)


def test_a_state_without_room_for_the_denominator_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"initial_state must be \[B, H, K, V\] = \[2, 4, 5, 4\]"):
        linear_attention(*tensors(), denominator=Denominator(), initial_state=torch.zeros(BATCH, HEADS, KEY, VALUE))


@both_backends
def test_steps_with_features_and_a_denominator() -> None:
    q, k, v = (x.detach() for x in tensors(kv_heads=KV_HEADS))
    shared: dict[str, Any] = {"feature_map": "elu+1", "denominator": Denominator(), "log_decay": DECAY, "scale": 0.7}
    whole, end = linear_attention(q, k, v, **shared, output_final_state=True)
    state = torch.zeros_like(end)
    outs = []
    for t in range(TOKENS):
        out, state = linear_attention_step(q[:, t], k[:, t], v[:, t], state, **shared)
        outs.append(out)
    torch.testing.assert_close(torch.stack(outs, 1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, end, rtol=1e-12, atol=1e-12)


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
