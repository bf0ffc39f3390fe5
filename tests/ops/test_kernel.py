"""A function with a kernel has every derivative: shown on a softmax with two outputs and gradients by hand."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from attensor.ops._kernel import differentiable, register

LENGTHS = torch.tensor([3, 5])


def definition(tensors, options):
    q, k, _ = tensors
    scores = options * q @ k.mT
    return scores.softmax(-1) @ k, scores.logsumexp(-1)


def forward(tensors, options, keep):
    out, lse = definition(tensors, options)
    return out, lse, lse.exp() if keep else lse[:, :0].clone()


def backward(tensors, kept, grads, options, needs):
    q, k, _ = tensors
    of_out, of_lse = grads
    weights = (options * q @ k.mT - kept[2][..., None]).exp()
    of_scores, grad_k = torch.zeros_like(weights), torch.zeros_like(k)
    if of_out is not None:
        of_weights = of_out @ k.mT
        of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True))
        grad_k = weights.mT @ of_out
    if of_lse is not None:
        of_scores = of_scores + weights * of_lse[..., None]
    grad_q, grad_k = options * of_scores @ k, grad_k + options * of_scores.mT @ q
    return grad_q if needs[0] else None, grad_k if needs[1] else None, None


ATTEND = differentiable(
    forward, backward, definition, batch_dims=(0, 0, None), out_dims=(0, 0), kept_dims=(0,), keep_outputs=True
)


def fast(q, k):
    return ATTEND((q, k, LENGTHS), 0.7)


def defined(q, k):
    return definition((q, k, LENGTHS), 0.7)


def loss(function):
    return lambda q, k: sum((x * torch.linspace(-1, 2, x.numel()).view_as(x)).sin().sum() for x in function(q, k))


@pytest.fixture
def inputs():
    return torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_first_and_second_derivatives_in_both_modes(inputs):
    tracked = [x.requires_grad_() for x in inputs]
    assert gradcheck(fast, tracked, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(fast, tracked, check_fwd_over_rev=True)
    for output in range(2):
        assert gradgradcheck(lambda q, k, output=output: fast(q, k)[output], tracked)


@pytest.mark.parametrize("needed", [(0,), (1,), (0, 1)], ids=str)
def test_transforms_compose(needed, inputs):
    tangents = tuple(map(torch.randn_like, inputs))
    assert_equal(torch.func.jvp(fast, inputs, tangents), torch.func.jvp(defined, inputs, tangents))
    for transform in (
        lambda f: torch.func.hessian(loss(f), argnums=needed),
        lambda f: torch.func.jacrev(torch.func.grad(loss(f), argnums=needed), argnums=needed),
        lambda f: torch.func.grad(lambda q, k: loss(lambda *x: torch.func.jvp(f, x, tangents)[1])(q, k), needed),
    ):
        assert_equal(transform(fast)(*inputs), transform(defined)(*inputs))


@pytest.mark.parametrize("in_dims", [(1, None), (0, 2), (None, 3)], ids=str)
def test_vmap_folds_into_the_batch(in_dims, inputs):
    many = [x if d is None else torch.stack([x, 2 * x, -x], d) for x, d in zip(inputs, in_dims)]
    results = [
        torch.func.vmap(torch.func.grad(loss(f), (0, 1)), in_dims)(*many) + torch.func.vmap(f, in_dims)(*many)
        for f in (fast, defined)
    ]
    assert_equal(*results)


def test_lengths_of_sequences_cannot_be_vmapped(inputs):
    with pytest.raises(NotImplementedError, match="one packing"):
        torch.func.vmap(lambda n: ATTEND((*inputs, n), 0.7))(torch.stack([LENGTHS] * 2))


def test_one_graph_checkpoints_and_a_gradient_that_nobody_has(inputs):
    tracked = [x.requires_grad_() for x in inputs]
    expected = torch.autograd.grad(loss(defined)(*tracked), tracked)
    compiled = torch.compile(loss(fast), fullgraph=True, backend="aot_eager")
    assert_equal(torch.autograd.grad(compiled(*tracked), tracked), expected)
    assert_equal(torch.autograd.grad(checkpoint(loss(fast), *tracked, use_reentrant=False), tracked), expected)
    only_lse = [torch.autograd.grad(f(*tracked)[1].square().sum(), tracked) for f in (fast, defined)]
    assert_equal(*only_lse)


def test_one_graph_without_gradients(inputs):
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    assert_equal(compiled(*inputs), fast(*inputs))


def test_forward_mode_with_one_dual_input(inputs):
    q, k = inputs
    tangent = torch.randn_like(k)
    with forward_ad.dual_level():
        found = [forward_ad.unpack_dual(x).tangent for x in fast(q, forward_ad.make_dual(k, tangent))]
    assert_equal(found, list(torch.func.jvp(lambda k: defined(q, k), (k,), (tangent,))[1]))


def test_a_registered_kernel_is_counted_when_somebody_counts_and_called_straight_when_nobody_does():
    seen = []

    def run(x, number):
        seen.append(type(x))
        return x * number

    call = register(
        "example_of_a_test(Tensor x, float number) -> Tensor",
        run,
        lambda x, number: x.new_empty(x.shape),
        flops=lambda x, number: 3 * x.numel(),
    )
    x = torch.randn(4, 5)
    assert torch.equal(call(x, 2.0), 2 * x)
    with FlopCounterMode(display=False) as counter:
        assert torch.equal(call(x, 2.0), 2 * x)
    assert counter.get_total_flops() == 60
    assert len(seen) == 2
    torch.library.opcheck(torch.ops.attensor.example_of_a_test, (x, 2.0))
    compiled = torch.compile(lambda x: call(x, 2.0) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), 2 * x + 1)
