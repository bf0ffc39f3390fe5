"""`linear_attention_step` in C++ against the recurrence, under every transform, and without one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from tests.ops.test_linear_attention import DECAYS, make
from torch import Tensor

from attensor.ops import linear_attention_reference, linear_attention_step
from attensor.ops._native.compiler import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
# torch.compile itself instantiates an autograd.Function while it traces one
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_are_those_of_torch(dtype: torch.dtype, state_dtype: torch.dtype) -> None:
    x = token("channel", dtype)
    x["state"] = x["state"].to(state_dtype)
    expected = in_torch(**x)
    rounding = torch.finfo(dtype).eps
    for found, other, bound in zip(in_cpp(**x), expected, (2 * rounding, 1e-6)):
        assert found.dtype == other.dtype
        torch.testing.assert_close(found, other, rtol=bound, atol=bound)


@pytest.mark.parametrize("decay", ["constant", "channel"])
def test_any_strides_give_the_same_bits_and_nothing_given_changes(decay: str) -> None:
    x = token(decay)
    expected, kept = in_cpp(**x), {name: value.clone() for name, value in x.items()}
    strided = {name: torch.stack([value, -value], -1)[..., 0] for name, value in x.items()}
    turned = {name: value.mT.contiguous().mT if value.ndim > 1 else value for name, value in x.items()}
    for other in (strided, turned, x):
        assert all(map(torch.equal, in_cpp(**other), expected))
    assert all(torch.equal(x[name], kept[name]) for name in x)


def test_an_expanded_head_is_like_its_copies() -> None:
    x = token("none", heads=4, key_heads=4)
    x["k"] = x["k"][:, :1].expand(-1, 4, -1)
    x["state"] = x["state"][:, :1].expand(-1, 4, -1, -1)
    copies = {name: value if value is None else value.clone() for name, value in x.items()}
    assert all(map(torch.equal, in_cpp(**x), in_cpp(**copies)))


@pytest.mark.parametrize("gate", [-torch.inf, -1000.0, -0.0])
def test_extreme_decays(gate: float) -> None:
    x = token("constant")
    x["log_decay"] = torch.full_like(x["log_decay"], gate)
    for found, expected in zip(in_cpp(**x), in_torch(**x)):
        torch.testing.assert_close(found, expected, **EXACT)


# transforms: who asks for a derivative gets torch's


def numbers(pair: tuple[Tensor, Tensor]) -> Tensor:
    return (pair[0] ** 2).sum() + (pair[1] ** 3).sum()


# torch itself, when it first computes a forward derivative
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    ("decay", "name"),
    [
        (decay, name)
        for decay in DECAYS
        for name in ("q", "k", "v", "state", "log_decay")
        if (decay, name) != ("none", "log_decay")
    ],
)
def test_derivatives_are_those_of_torch(decay: str, name: str) -> None:
    x = token(decay)

    def loss(step: Any, value: Tensor) -> Tensor:
        return numbers(step(**x | {name: value}))

    direction = torch.randn_like(x[name])
    for transform in (
        lambda f: torch.func.grad(f)(x[name]),
        lambda f: torch.func.jvp(f, (x[name],), (direction,))[1],
        lambda f: torch.func.jvp(torch.func.grad(f), (x[name],), (direction,))[1],
        lambda f: torch.autograd.functional.vjp(f, x[name])[1],
    ):
        found = transform(partial(loss, in_cpp))
        torch.testing.assert_close(found, transform(partial(loss, in_torch)), **EXACT)
        assert found.count_nonzero()


@pytest.mark.parametrize("decay", DECAYS)
def test_vmap_is_more_batch(decay: str) -> None:
    """Over any argument, in any dimension, the others shared."""
    x = token(decay)
    for name, value in x.items():
        if value is None:
            continue
        for dim in range(value.ndim + 1):
            many = torch.stack([value, 2 * value, value - 1], dim)
            found = torch.vmap(lambda one, name=name: in_cpp(**x | {name: one}), in_dims=dim)(many)
            for n in range(3):
                expected = in_cpp(**x | {name: many.select(dim, n)})
                assert all(torch.equal(a[n], b) for a, b in zip(found, expected)), (name, dim)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_what_is_registered_keeps_the_rules(decay: str, dtype: torch.dtype) -> None:
    """Nothing is changed or aliased; shapes, strides and dtypes are what compilers are told."""
    x = token(decay, dtype, heads=6, key_heads=3)
    gate = x["log_decay"]
    if gate is not None:
        gate = (gate[None, :, None] if gate.ndim == 1 else gate.view(*gate.shape[:2], -1)).expand(len(x["q"]), -1, -1)
    torch.library.opcheck(
        torch.ops.attensor.cpp_linear_attention_step.default, (x["q"], x["k"], x["v"], x["state"], gate, 0.7)
    )


@compiles
@pytest.mark.parametrize("decay", ["none", "channel"])
def test_it_compiles_as_a_whole(decay: str) -> None:
    torch.compiler.reset()
    x = token(decay, torch.float32)
    graphs = []

    def noted(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    found = torch.compile(in_cpp, fullgraph=True, backend=noted)(**x)
    assert all(map(torch.equal, found, in_cpp(**x)))
    assert any("attensor.cpp_linear_attention_step" in str(node.target) for node in graphs[0].graph.nodes)
