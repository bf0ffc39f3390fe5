"""`relative_kernel_attention` under torch's transforms: vmap, func.grad, compile, the library of operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attensor.bench import measure_peak_bytes
from attensor.ops import relative_kernel_attention, relative_kernel_attention_reference


def make(*space: int, reach: int | None = None) -> list[Tensor]:
    """q, k, v and relative_bias of B 2, H 3, K 5, V 4; float64, with gradients."""
    shapes = [(2, *space, 3, 5), (2, *space, 3, 5), (2, *space, 3, 4), (3, *(2 * (reach or n) - 1 for n in space))]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def weighted(out: Tensor) -> Tensor:
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()


@pytest.mark.parametrize("mapped", ["q", "all", "bias"])
def test_vmap_of_a_gradient_is_a_loop(algorithm: str, mapped: str) -> None:
    tensors = [t.detach() for t in make(7)]
    which = {"q": (0,), "bias": (3,), "all": (0, 1, 2, 3)}[mapped]
    tensors = [torch.stack([t, t + 0.3, t.flip(1)], 1) if i in which else t for i, t in enumerate(tensors)]
    in_dims = tuple(1 if i in which else None for i in range(4))

    def loss(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return weighted(
            relative_kernel_attention(q, k, v, relative_bias=bias, feature_map="elu+1", algorithm=algorithm)
        )

    gradient = torch.func.grad(loss, (0, 1, 2, 3))
    found = torch.func.vmap(gradient, in_dims)(*tensors)
    for i in range(3):
        one = gradient(*(t[:, i] if j in which else t for j, t in enumerate(tensors)))
        for got, expected in zip(found, one, strict=True):
            torch.testing.assert_close(got[i], expected, rtol=0, atol=1e-11)


def test_traces_as_one_graph(algorithm: str) -> None:
    tensors = make(7)
    torch._dynamo.reset()

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return relative_kernel_attention(
            q, k, v, relative_bias=bias, feature_map="elu+1", is_causal=True, algorithm=algorithm
        )

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for got, expected in zip(
        *(torch.autograd.grad(weighted(function(*tensors)), tensors) for function in (compiled, attend))
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backward", [False, True])
def test_the_library_operators_are_what_they_say(backward: bool) -> None:
    inputs = [torch.rand(2, 3, 7, 5), torch.rand(2, 3, 11, 5), torch.rand(2, 3, 11, 4), torch.rand(3, 17)]
    operator = torch.ops.attensor.fourier_kernel_sum.default
    if backward:
        operator = torch.ops.attensor.fourier_kernel_sum_backward.default
        inputs.append(torch.rand(2, 3, 7, 5))
    torch.library.opcheck(operator, (*inputs, [7], [11], False, []), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("backward", [False, True])
def test_the_cpp_operators_are_what_they_say(backward: bool) -> None:
    inputs = [torch.rand(2, 3, 7, 5), torch.rand(2, 3, 11, 5), torch.rand(2, 3, 11, 4), torch.rand(3, 17)]
    options = ([7], [11], True, [512, 11, 0, 0])
    operator = torch.ops.attensor.cpp_kernel_sum.default
    if backward:
        operator = torch.ops.attensor.cpp_kernel_sum_backward.default
        inputs.append(torch.rand(2, 3, 7, 5))
    torch.library.opcheck(operator, (*inputs, *options), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_compiled_code_agrees(algorithm: str) -> None:
    tensors = [t.detach().float().requires_grad_() for t in make(140, reach=3)]
    torch._dynamo.reset()

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return relative_kernel_attention(q, k, v, relative_bias=bias, feature_map="elu+1", algorithm=algorithm)

    compiled = torch.compile(attend, fullgraph=True)
    for got, expected in zip(
        *(torch.autograd.grad(weighted(function(*tensors)), tensors) for function in (compiled, attend))
    ):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("case", ["sequence", "causal", "grid", "packed"])
def test_every_derivative_is_that_of_the_definition(algorithm: str, case: str) -> None:
    tensors = make(2, 3) if case == "grid" else make(5)
    options = {"feature_map": "elu+1", "is_causal": case == "causal"}
    if case == "packed":
        tensors[:3] = [t[:1].detach().requires_grad_() for t in tensors[:3]]
        options |= {"cu_seqlens": torch.tensor([0, 2, 5]), "max_seqlen": 3}

    def loss(function, **more):
        return lambda q, k, v, bias: weighted(function(q, k, v, relative_bias=bias, **options, **more).sin())

    plain, tangents = tuple(t.detach() for t in tensors), tuple(torch.randn_like(t) for t in tensors)
    for transform in (
        lambda f: torch.func.jvp(f, plain, tangents),
        lambda f: torch.func.hessian(f, argnums=(0, 3))(*plain),
        lambda f: torch.func.jvp(lambda *x: torch.func.grad(f, (1, 2))(*x), plain, tangents),
    ):
        found = transform(loss(relative_kernel_attention, algorithm=algorithm))
        expected = transform(loss(relative_kernel_attention_reference))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_tiles_in_cpp_count_the_pairs_that_are_seen() -> None:
    q, k, v, bias = make(140)
    with FlopCounterMode(display=False) as counter:
        out = relative_kernel_attention(q, k, v, relative_bias=bias, feature_map="relu", is_causal=True, backend="cpp")
    pairs = 2 * 3 * 140 * 141 // 2
    assert counter.get_total_flops() == 2 * pairs * (5 + 4 + 1)
    with FlopCounterMode(display=False) as counter:
        weighted(out).backward()
    assert counter.get_total_flops() == 2 * pairs * (3 * 5 + 2 * 4 + 1)


@pytest.mark.slow
def test_memory_is_linear(algorithm: str) -> None:
    """Four times the tokens need about four times the memory, forward and backward; all pairs would need 4 GiB."""

    def peak(tokens: int) -> int:
        q, k, v = (torch.randn(1, tokens, 1, 16, requires_grad=True) for _ in range(3))
        bias = torch.randn(1, 2 * tokens - 1, requires_grad=True)

        def call() -> None:
            out = relative_kernel_attention(
                q, k, v, relative_bias=bias, feature_map="elu+1", is_causal=True, algorithm=algorithm
            )
            torch.autograd.grad(weighted(out), (q, k, v, bias))

        call()
        return measure_peak_bytes(call)

    long = 32_768 if algorithm == "fft" else 16_384
    assert peak(long) < 6 * max(peak(long // 4), 2**22)
