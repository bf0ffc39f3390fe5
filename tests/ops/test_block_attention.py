"""Laws of block_attention: regrouping equals a mask made of coordinates, for every pattern, padding and bias."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vmap

from attensor.errors import ShapeError
from attensor.ops import block_attention, block_attention_reference, softmax_attention

BLOCKS = [
    ("window", (7,), 3),
    ("grid", (7,), 3),
    ("window", (6, 10), (3, 5)),
    ("grid", (6, 10), (3, 5)),
    ("window", (7, 11), (3, 5)),
    ("grid", (7, 11), (3, 5)),
    ("window", (2, 3), (5, 3)),
    ("grid", (2, 3), (5, 3)),
    ("window", (5, 3, 7), 2),
    ("grid", (5, 3, 7), 2),
]


def make(space, *, batch=2, heads=4, kv_heads=2, key_dim=3, value_dim=5, dtype=torch.float64):
    sizes = ((heads, key_dim), (kv_heads, key_dim), (kv_heads, value_dim))
    return [torch.randn(batch, *space, *size, dtype=dtype, requires_grad=True) for size in sizes]


def weigh(x):
    return (x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum()


def with_gradients(function, inputs, **options):
    out = function(*inputs, **options)
    return [out, *torch.autograd.grad(weigh(out), inputs)]


def tokens_in_block(pattern, block_size, rank):
    return block_size**rank if isinstance(block_size, int) else block_size[0] * block_size[1]


@pytest.mark.parametrize("mask", ["none", "float", "bool"])
@pytest.mark.parametrize(("pattern", "space", "block_size"), BLOCKS, ids=str)
def test_windows_and_grids_equal_the_definition(pattern, space, block_size, mask):
    inputs = make(space)
    tokens = tokens_in_block(pattern, block_size, len(space))
    options = {"pattern": pattern, "block_size": block_size}
    if mask == "bool":
        options["attn_mask"] = torch.rand(4, tokens, tokens) > 0.4
    if mask == "float":
        inputs.append(torch.randn(4, tokens, tokens, dtype=torch.float64, requires_grad=True))

    def call(function):
        def biased(q, k, v, bias=None):
            return function(q, k, v, **options) if bias is None else function(q, k, v, **options, attn_mask=bias)

        return with_gradients(biased, inputs)

    torch.testing.assert_close(call(block_attention), call(block_attention_reference), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("space", "axis"), [((7,), 0), ((5, 7), 0), ((5, 7), -1), ((2, 5, 3), 1)], ids=str)
def test_axial_equals_the_definition(space, axis, is_causal, biased):
    inputs = make(space)
    options = {"pattern": "axial", "axis": axis, "is_causal": is_causal}
    if biased:
        options["attn_mask"] = torch.randn(4, space[axis], space[axis], dtype=torch.float64)
    fast, reference = (with_gradients(f, inputs, **options) for f in (block_attention, block_attention_reference))
    torch.testing.assert_close(fast, reference, rtol=1e-10, atol=1e-10)


def test_a_window_is_a_box_and_a_grid_takes_one_token_of_every_cell():
    """Written with slices: window (1, 2) of a 2 x 3 partition, and the tokens at place (1, 2) of every 3 x 5 cell."""
    inputs = [t.detach() for t in make((6, 15))]

    def alone(rows, columns):
        part = [t[:, rows, columns] for t in inputs]
        return softmax_attention(*(t.flatten(1, 2) for t in part)).view(2, *part[0].shape[1:3], 4, 5)

    window = block_attention(*inputs, pattern="window", block_size=(3, 5))
    torch.testing.assert_close(window[:, 3:6, 10:15], alone(slice(3, 6), slice(10, 15)))
    grid = block_attention(*inputs, pattern="grid", block_size=(2, 3))  # 2 x 3 cells of 3 x 5 tokens
    torch.testing.assert_close(grid[:, 1::3, 2::5], alone(slice(1, None, 3), slice(2, None, 5)))


@pytest.mark.parametrize("pattern", ["window", "grid"])
def test_padding_changes_nothing_for_the_tokens_that_are_there(pattern):
    """7 tokens in windows of 3: the last window holds one token, which attends to itself."""
    inputs = [t.detach() for t in make((7,))]
    out = block_attention(*inputs, pattern=pattern, block_size=3)
    assert out.isfinite().all()
    if pattern == "window":
        torch.testing.assert_close(out[:, 6], inputs[2][:, 6].repeat_interleave(2, 1))


def test_gradients_by_finite_differences():
    inputs = make((3, 2), batch=1, heads=2, kv_heads=1, key_dim=2, value_dim=3)
    bias = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    for pattern in ("window", "grid"):

        def biased(q, k, v, b, pattern=pattern):
            return block_attention(q, k, v, pattern=pattern, block_size=2, attn_mask=b)

        assert torch.autograd.gradcheck(biased, [*inputs, bias])
    assert torch.autograd.gradcheck(lambda *t: block_attention(*t, pattern="axial", axis=0, is_causal=True), inputs)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float32, 1e-5)])
def test_low_precision_stays_near_the_definition(dtype, error):
    exact = [t.detach().to(dtype).double().requires_grad_() for t in make((7, 11))]
    rounded = [t.detach().to(dtype).requires_grad_() for t in exact]
    options = {"pattern": "grid", "block_size": (3, 5)}
    for fast, slow in zip(
        with_gradients(block_attention, rounded, **options), with_gradients(block_attention_reference, exact, **options)
    ):
        assert fast.dtype == dtype
        assert (fast.double() - slow).norm() <= error * slow.norm()


def test_function_transforms():
    q, k, v = (torch.randn(3, 1, 4, 6, 2, 5) for _ in range(3))
    for options in ({"pattern": "window", "block_size": (2, 4)}, {"pattern": "axial", "axis": 1, "is_causal": True}):

        def loss(q, k, v, options=options):
            return weigh(block_attention(q, k, v, **options))

        grads = vmap(grad(loss, argnums=(0, 1, 2)), (0, 0, None))(q, k, v[0])
        for i in range(3):
            inputs = [t.clone().requires_grad_() for t in (q[i], k[i], v[0])]
            torch.testing.assert_close([g[i] for g in grads], list(torch.autograd.grad(loss(*inputs), inputs)))


def test_compiles_without_graph_breaks():
    inputs = make((5, 7))

    def loss(q, k, v):
        out = block_attention(q, k, v, pattern="grid", block_size=(2, 3))
        return weigh(out) + weigh(block_attention(q, k, v, pattern="axial", axis=0, is_causal=True))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(*(torch.autograd.grad(f(*inputs), inputs) for f in (compiled, loss)))


def test_empty_batch():
    inputs = make((5, 7), batch=0)
    assert block_attention(*inputs, pattern="window", block_size=3).shape == (0, 5, 7, 4, 5)


def test_what_is_refused_says_how_to_repair_it():
    q, k, v = (t.detach() for t in make((5, 7)))
    with pytest.raises(ValueError, match='pattern must be "window", "grid" or "axial"'):
        block_attention(q, k, v, pattern="diagonal", block_size=2)
    with pytest.raises(ValueError, match="needs block_size and no axis"):
        block_attention(q, k, v, pattern="window", axis=0)
    with pytest.raises(ValueError, match=r"needs axis in \[-2, 1\]"):
        block_attention(q, k, v, pattern="axial", axis=2)
    with pytest.raises(ShapeError, match="2 positive integers"):
        block_attention(q, k, v, pattern="grid", block_size=(2, 3, 4))
    with pytest.raises(ShapeError, match="2 positive integers"):
        block_attention(q, k, v, pattern="grid", block_size=0)
    with pytest.raises(ValueError, match='use pattern="axial"'):
        block_attention(q, k, v, pattern="window", block_size=2, is_causal=True)
    with pytest.raises(ShapeError, match="attn_mask must broadcast"):
        block_attention(q, k, v, pattern="window", block_size=2, attn_mask=torch.zeros(4, 2, 2))
    with pytest.raises(ShapeError, match="same grid"):
        block_attention(q, k[:, 1:], v[:, 1:], pattern="window", block_size=2)
    with pytest.raises(ShapeError, match="space axes"):
        block_attention(q[0, 0], k[0, 0], v[0, 0], pattern="window", block_size=2)


@pytest.mark.parametrize(
    "options", [{"pattern": "window", "block_size": 2}, {"pattern": "axial", "axis": 0, "is_causal": True}]
)
def test_every_derivative_is_that_of_the_definition(options):
    inputs = [torch.randn(1, 3, 2, heads, size, dtype=torch.float64) for heads, size in ((2, 2), (1, 2), (1, 3))]
    tangents = tuple(torch.randn_like(t) for t in inputs)

    def loss(function):
        return lambda q, k, v: (function(q, k, v, **options) * torch.linspace(-1, 2, 3).double()).sin().sum()

    fast, slow = loss(block_attention), loss(block_attention_reference)
    assert torch.autograd.gradcheck(fast, [t.requires_grad_() for t in inputs], check_batched_grad=True)
    plain = tuple(t.detach() for t in inputs)
    for transform in (
        lambda f: torch.func.jvp(f, plain, tangents),
        lambda f: torch.func.hessian(f, argnums=(0, 1, 2))(*plain),
        lambda f: torch.func.vmap(torch.func.grad(f), (0, None, None))(
            torch.stack([plain[0], tangents[0]]), *plain[1:]
        ),
    ):
        torch.testing.assert_close(transform(fast), transform(slow), rtol=1e-10, atol=1e-10)
