"""The Triton kernels as torch sees them: autograd, torch.func, torch.compile, fake tensors, the library's checks."""

from __future__ import annotations

import pytest
import torch
from tests.ops.test_linear_attention import make, weights
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from attensor.errors import BackendError
from attensor.ops import linear_attention, linear_attention_step

pytest.importorskip("triton", reason="the kernels are written in triton")

from attensor.ops.linear_attention.triton import entry as _entry  # noqa: F401 - registers the operators

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {"batch": 1, "tokens": 5, "heads": 2, "key_heads": 1, "decay_heads": 2, "key_dim": 3, "value_dim": 7}
# torch.compile itself instantiates an autograd.Function while it traces one
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def single(decay: str, **sizes: int) -> list[Tensor | None]:
    tensors = make(decay, **SIZES | sizes).values()
    return [None if x is None else x.detach().float().to(DEVICE).requires_grad_() for x in tensors]


def loss(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, initial_state: Tensor, backend: str = "triton"
) -> Tensor:
    known = {"log_decay": log_decay, "initial_state": initial_state, "output_final_state": True}
    out, state = linear_attention(q, k, v, **known, backend=backend)
    return (out * weights(out)).sum() + (state * weights(state)).sum()


@pytest.mark.parametrize("decay", ["constant", pytest.param("channel", marks=pytest.mark.slow)])
def test_vmap_of_grad(decay: str) -> None:
    one = [None if x is None else x.detach() for x in single(decay)]
    present = tuple(i for i, x in enumerate(one) if x is not None)
    many = [x if x is None or i == 1 else torch.stack([x, x * 0.5], 1) for i, x in enumerate(one)]
    in_dims = tuple(None if x is None or i == 1 else 1 for i, x in enumerate(many))
    grads = torch.func.vmap(torch.func.grad(loss, present), in_dims)(*many)
    for n in range(2):
        arguments = [x if d is None else x.select(1, n) for x, d in zip(many, in_dims, strict=True)]
        arguments = [None if x is None else x.clone().requires_grad_() for x in arguments]
        expected = torch.autograd.grad(loss(*arguments, backend="torch"), [arguments[i] for i in present])
        for actual, other in zip(grads, expected, strict=True):
            torch.testing.assert_close(actual[n], other, rtol=1e-4, atol=1e-5)


@compiles
@pytest.mark.parametrize("decay", ["constant", pytest.param("channel", marks=pytest.mark.slow)])
def test_compiles_whole(decay: str) -> None:
    torch.compiler.reset()
    arguments = single(decay)
    expected = torch.autograd.grad(loss(*arguments), arguments)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(*arguments), arguments)
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # inductor itself uses what torch deprecates
@pytest.mark.slow
def test_compiles_with_inductor() -> None:
    torch.compiler.reset()
    arguments = single("scalar")
    expected = torch.autograd.grad(loss(*arguments), arguments)
    actual = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*arguments), arguments)
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decay", ["none", "constant", pytest.param("channel", marks=pytest.mark.slow)])
def test_the_library_accepts_the_operators(decay: str) -> None:
    q, k, v, log_decay, state = (None if x is None else x.detach() for x in single(decay))
    log_decay = log_decay[None] if decay == "constant" else log_decay
    inputs = (q, k, v, log_decay, state[None], None)
    registered = torch.ops.attensor
    torch.library.opcheck(registered.triton_linear_attention.default, (*inputs, 0.5, 16, "", 0))
    grads = (torch.randn(1, 5, 2, 7, device=DEVICE), torch.randn(1, 1, 2, 3, 7, device=DEVICE))
    backward, kept = registered.triton_linear_attention_backward.default, grads[1][:0]
    torch.library.opcheck(backward, (*inputs, kept, *grads, 0.5, 16, "on_chip", decay != "none"))
    gate = log_decay[:, :1] if decay == "channel" else log_decay
    token, pool = [x[:, :1].contiguous() for x in (q, k, v)], torch.randn(4, 2, 3, 7, device=DEVICE)
    step, slots = registered.triton_linear_attention_step.default, torch.tensor([2], device=DEVICE)
    torch.library.opcheck(step, (*token, gate, pool, slots, 0.5))


@pytest.mark.parametrize("decay", ["constant", "channel"])
def test_fake_and_meta_tensors(decay: str) -> None:
    arguments = single(decay)
    value = torch.autograd.grad(loss(*arguments), arguments)
    meta = [x.detach().to("meta").requires_grad_() for x in arguments]
    found = torch.autograd.grad(loss(*meta), meta)
    plain = [x.detach() for x in arguments[:3]]
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in plain]
        out, state = linear_attention(*fake, output_final_state=True, backend="triton")
    real = linear_attention(*arguments[:3], output_final_state=True, backend="triton")
    for mine, other in zip((*found, out, state), (*value, *real), strict=True):
        assert (mine.shape, mine.stride(), mine.dtype) == (other.shape, other.stride(), other.dtype)


def test_any_strides_and_expanded_gradients() -> None:
    arguments = single("scalar")
    strided = [x.detach().mT.contiguous().mT.requires_grad_() for x in arguments]
    results = []
    for backend in ("torch", "triton"):
        found = []
        for tensors in (arguments, strided):
            out, _ = linear_attention(*tensors[:3], log_decay=tensors[3], backend=backend)
            found.append(torch.autograd.grad(out.sum(), tensors[:4]))  # the gradient of a sum has strides of 0
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
        results.append(found[0])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_float64_is_refused() -> None:
    q, k, v, log_decay, state = make("channel", **SIZES).values()
    with pytest.raises(BackendError, match="compute in float32, not float64"):
        linear_attention(q, k, v, log_decay=log_decay, initial_state=state, backend="triton")
    with pytest.raises(BackendError, match="compute in float32, not float64"):
        linear_attention_step(q[:, 0], k[:, 0], v[:, 0], state, backend="triton")


def test_second_derivatives_are_those_of_the_definition() -> None:
    arguments = single("none")
    second = []
    for backend in ("triton", "reference"):
        out, _ = linear_attention(*arguments[:3], backend=backend)
        grad = torch.autograd.grad(out.square().sum(), arguments[0], create_graph=True)[0]
        second.append(torch.autograd.grad(grad.square().sum(), arguments[1])[0])
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-4)
