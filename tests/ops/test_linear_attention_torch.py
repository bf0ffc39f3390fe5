"""`linear_attention` under autograd, torch.func, torch.compile, autocast, fake tensors; its numerics, its errors."""

from __future__ import annotations

import pytest
import torch
from tests.ops.test_linear_attention import DECAYS, assert_same, make, results, weights
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from attensor.errors import ShapeError
from attensor.ops.linear_attention import linear_attention, linear_attention_reference, linear_attention_step

# torch.compile itself instantiates an autograd.Function while it traces one
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
both_backends = pytest.mark.usefixtures("backend")
PACKED = torch.tensor([0, 0, 7, 12, 19])


def loss(*arguments: Tensor | None, chunk_size: int = 8) -> Tensor:
    q, k, v, log_decay, initial_state = arguments[:5]
    cu_seqlens = arguments[5] if len(arguments) > 5 else None
    options = {"output_final_state": True, "chunk_size": chunk_size, "cu_seqlens": cu_seqlens}
    out, state = linear_attention(q, k, v, log_decay=log_decay, initial_state=initial_state, **options)
    return (out * weights(out)).sum() + (state * weights(state)).sum()


@both_backends
@pytest.mark.parametrize("decay", DECAYS)
def test_gradcheck(decay: str) -> None:
    tensors = make(decay, batch=1, tokens=11, heads=2, key_heads=1, key_dim=3, value_dim=2, decay_heads=2)

    def function(*arguments: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v, log_decay, state = arguments
        return linear_attention(
            q, k, v, log_decay=log_decay, initial_state=state, output_final_state=True, chunk_size=4
        )

    assert torch.autograd.gradcheck(function, tuple(tensors.values()))


@both_backends
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("mapped", [(0,), (1, 2), (3,), (4,), (0, 1, 2, 3, 4)])
def test_vmap_of_grad(decay: str, mapped: tuple[int, ...]) -> None:
    one = [x if x is None else x.detach() for x in make(decay, tokens=19).values()]
    present = tuple(i for i, x in enumerate(one) if x is not None)
    mapped = tuple(i for i in mapped if i in present) or (0,)
    many = [torch.stack([x, x * 0.5, x * 0.7], 1) if i in mapped else x for i, x in enumerate(one)]
    in_dims = tuple(1 if i in mapped else None for i in range(5))
    values = torch.func.vmap(loss, in_dims)(*many)
    grads = torch.func.vmap(torch.func.grad(loss, present), in_dims)(*many)
    for n in range(3):
        single = [x.select(1, n).requires_grad_() if i in mapped else x for i, x in enumerate(many)]
        single = [x if x is None else x.detach().requires_grad_() for x in single]
        value = loss(*single)
        expected = torch.autograd.grad(value, [single[i] for i in present])
        torch.testing.assert_close(values[n], value.detach(), rtol=1e-12, atol=0)
        for actual, other in zip(grads, expected, strict=True):
            torch.testing.assert_close(actual[n], other, rtol=1e-11, atol=1e-11)


def test_vmap_over_packings_is_refused() -> None:
    tensors = make("none", batch=1, tokens=19, rows=4)
    with pytest.raises(NotImplementedError, match="packed sequences"):
        torch.func.vmap(loss, (None, None, None, None, None, 0))(*tensors.values(), torch.stack([PACKED, PACKED]))


@both_backends
@compiles
@pytest.mark.parametrize(
    ("decay", "packed"),
    [("channel", False), ("constant", True)]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in (("none", False), ("scalar", False), ("channel", True))],
)
def test_compiles_whole(decay: str, packed: bool) -> None:
    torch.compiler.reset()
    tensors = make(decay, batch=1, tokens=5, rows=2 if packed else None)
    arguments = [*tensors.values(), torch.tensor([0, 2, 5]) if packed else None]
    present = [x for x in tensors.values() if x is not None]
    expected = torch.autograd.grad(loss(*arguments, chunk_size=2), present)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(*arguments, chunk_size=2), present)
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@both_backends
@pytest.mark.filterwarnings("ignore")  # inductor itself uses what torch deprecates
@pytest.mark.slow
@pytest.mark.parametrize("decay", ["constant", "channel"])
def test_compiles_with_inductor(decay: str) -> None:
    torch.compiler.reset()
    tensors = {n: x.detach().float().requires_grad_() for n, x in make(decay, tokens=11).items()}
    arguments, present = list(tensors.values()), list(tensors.values())
    expected = torch.autograd.grad(loss(*arguments), present)
    actual = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*arguments), present)
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def assert_same_form(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        assert actual[name].stride() == value.stride(), name
        assert actual[name].dtype == value.dtype, name


@both_backends
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_fake_tensors(decay: str, dtype: torch.dtype) -> None:
    tensors = make(decay, batch=1, tokens=19, rows=4, dtype=dtype)
    with FakeTensorMode() as mode:
        fake = {n: None if x is None else mode.from_tensor(x) for n, x in tensors.items()}
        found = results(linear_attention, fake, cu_seqlens=mode.from_tensor(PACKED))
    assert_same_form(found, results(linear_attention, tensors, cu_seqlens=PACKED))


@pytest.mark.parametrize("decay", DECAYS)
def test_meta_tensors(decay: str) -> None:
    tensors = make(decay, batch=1, tokens=19, rows=4)
    meta = {n: None if x is None else x.detach().to("meta").requires_grad_() for n, x in tensors.items()}
    found = results(linear_attention, meta, cu_seqlens=PACKED.to("meta"))
    assert_same_form(found, results(linear_attention, tensors, cu_seqlens=PACKED))


@both_backends
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_costs_one_rounding(decay: str, dtype: torch.dtype, autocast: bool) -> None:
    exact = make(decay, tokens=53)
    low = {n: None if x is None else x.detach().to(dtype).requires_grad_() for n, x in exact.items()}
    high = {n: None if x is None else x.detach().double().requires_grad_() for n, x in low.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = results(linear_attention, low, chunk_size=16)
    assert found["out"].dtype == dtype
    assert found["state"].dtype == torch.float32
    unit = max(torch.finfo(dtype).eps, 1e-5)
    for name, value in results(linear_attention_reference, high).items():
        error = (found[name].double() - value).norm() / value.norm()
        assert error <= 2 * unit, f"{name}: {error:.1e}"


@both_backends
@pytest.mark.parametrize("decay", ["constant", "scalar", "channel"])
@pytest.mark.parametrize("floor", [-100.0, -1e4, -torch.inf])
def test_large_gates_cost_no_digits(decay: str, floor: float) -> None:
    """Gates of `floor` stand among mild ones: differences of running sums would lose the mild ones' digits."""
    tensors = {n: x.detach().float() for n, x in make(decay, tokens=67).items()}
    gates = tensors["log_decay"]
    gates[torch.rand(gates.shape, generator=torch.Generator().manual_seed(1)) < 0.2] = floor
    single = {n: x.requires_grad_() for n, x in tensors.items()}
    double = {n: x.detach().double().requires_grad_() for n, x in tensors.items()}
    found = results(linear_attention, single)
    for name, value in results(linear_attention_reference, double).items():
        if floor == -torch.inf and name == "gradient of log_decay":
            value = value.nan_to_num(0.0)
        assert found[name].isfinite().all(), name
        torch.testing.assert_close(
            found[name].double(), value, rtol=0, atol=1e-5 * value.abs().max().clamp(min=1).item()
        )


@both_backends
@pytest.mark.parametrize("decay", DECAYS)
def test_large_inputs_stay_finite(decay: str) -> None:
    tensors = make(decay, dtype=torch.float32)
    with torch.no_grad():
        for name in ("q", "k", "v"):
            tensors[name].mul_(1e4)
    assert all(x.isfinite().all() for x in results(linear_attention, tensors, chunk_size=8).values())


@both_backends
@pytest.mark.parametrize("decay", DECAYS)
def test_scale_may_be_zero(decay: str) -> None:
    tensors = make(decay, tokens=19)
    found = results(linear_attention, tensors, chunk_size=8, scale=0.0)
    assert found["out"].eq(0).all()
    assert_same(found, results(linear_attention_reference, tensors, scale=0.0))


@pytest.mark.parametrize(("backend", "share"), [("cpp", 0.25), ("torch", 0.05)], indirect=["backend"])
def test_little_is_kept_but_the_inputs(backend: str, share: float) -> None:
    """States alone: in C++ those before every 32 tokens or V, the larger of both; in torch those before segments."""
    tensors = {n: x.detach().float().requires_grad_() for n, x in make("channel", batch=1, tokens=4096).items()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        linear_attention(**tensors)
    inputs = {x.untyped_storage().data_ptr() for x in tensors.values()}
    extra = sum(size for pointer, size in kept.items() if pointer not in inputs)
    assert extra <= share * tensors["q"].nbytes


@pytest.mark.parametrize("decay", DECAYS)
def test_step_equals_the_recurrence(decay: str) -> None:
    tensors = make(decay, tokens=1)
    q, k, v, gate, state = tensors.values()
    gate = gate if gate is None or gate.ndim == 1 else gate[:, 0]

    def step(**_: object) -> tuple[Tensor, Tensor]:
        out, new = linear_attention_step(q[:, 0], k[:, 0], v[:, 0], state, log_decay=gate)
        return out[:, None], new

    assert_same(results(step, tensors), results(linear_attention_reference, tensors))
    out, new = linear_attention_step(q[:, 0].half(), k[:, 0].half(), v[:, 0].half(), state.float())
    assert (out.dtype, new.dtype) == (torch.float16, torch.float32)


ERRORS = {
    "dimensions": ({"q": (2, 37, 5)}, ShapeError, "1 space axes"),
    "layout of q": ({"q": (2, 6, 37, 5), "k": (2, 3, 37, 5), "v": (2, 3, 37, 7)}, ShapeError, r"transpose\(1, 2\)"),
    "tokens": ({"k": (2, 36, 3, 5)}, ShapeError, "must agree in everything but the last size"),
    "values": ({"v": (2, 37, 6, 7)}, ShapeError, "must agree in everything but the last size"),
    "key size": ({"k": (2, 37, 3, 4)}, ShapeError, "same head size"),
    "heads": (
        {"k": (2, 37, 4, 5), "v": (2, 37, 4, 7)},
        ShapeError,
        "6 heads of q .* a multiple of the 4 heads",
    ),
    "decay": ({"log_decay": (2, 37, 2)}, ShapeError, "is none of .*the 3 key heads"),
    "layout of decay": ({"log_decay": (2, 6, 37)}, ShapeError, r"transpose\(1, 2\)"),
    "state": ({"initial_state": (2, 6, 7, 5)}, ShapeError, r"\[B, H, K, V\] = \[2, 6, 5, 7\], got \[2, 6, 7, 5\]"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_wrong_sizes_are_named(case: str, backend: str) -> None:
    sizes, error, message = ERRORS[case]
    tensors = make("scalar") | {name: torch.zeros(shape, dtype=torch.float64) for name, shape in sizes.items()}
    with pytest.raises(error, match=message):
        linear_attention(**tensors, backend=backend)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": torch.ones(2, 37, 6, 5, dtype=torch.long)}, TypeError, "q must be floating point, got torch.int64"),
        ({"q": torch.ones(2, 37, 6, 5)}, TypeError, "must share one floating dtype"),
        ({"k": torch.ones(2, 37, 3, 5, device="meta")}, ValueError, "k is on meta, q on cpu"),
        ({"log_decay": torch.ones(6, dtype=torch.int32)}, TypeError, "log_decay must be floating point"),
        ({"log_decay": torch.ones(6, device="meta")}, ValueError, "log_decay is on meta"),
        ({"chunk_size": 48}, ValueError, "power of two or None"),
        ({"chunk_size": 0}, ValueError, "power of two or None"),
        ({"cu_seqlens": torch.tensor([0, 37])}, ShapeError, "need a batch of 1"),
        ({"cu_seqlens": torch.tensor([[0, 37]])}, ShapeError, r"cu_seqlens must be \[N \+ 1\]"),
        ({"cu_seqlens": torch.tensor([0.0, 37.0])}, TypeError, "int32 or int64"),
        ({"cu_seqlens": torch.tensor([0, 37], device="meta")}, ValueError, "cu_seqlens is on meta"),
    ],
)
def test_wrong_types_and_options_are_named(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^linear_attention: .*{message}"):
        linear_attention(**make("scalar") | changes)


def test_packed_states_are_one_a_sequence() -> None:
    tensors = make("none", batch=1, tokens=19, rows=3)
    with pytest.raises(ShapeError, match=r"\[N, H, K, V\] = \[4, 6, 5, 7\], got \[3, 6, 5, 7\]"):
        linear_attention(**tensors, cu_seqlens=PACKED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.ones(2, 1, 6, 5)}, "0 space axes"),
        ({"k": torch.ones(3, 3, 5)}, "must agree in everything but the last size"),
        ({"k": torch.ones(2, 3, 4)}, "same head size"),
        ({"state": torch.ones(2, 3, 5, 7)}, r"state must be \[B, H, K, V\] = \[2, 6, 5, 7\]"),
        ({"log_decay": torch.ones(2, 2)}, "is none of .*the 3 key heads"),
    ],
)
def test_wrong_steps_are_named(changes: dict[str, Tensor], message: str) -> None:
    right = {
        "q": torch.ones(2, 6, 5),
        "k": torch.ones(2, 3, 5),
        "v": torch.ones(2, 3, 7),
        "state": torch.ones(2, 6, 5, 7),
    }
    with pytest.raises(ShapeError, match=f"^linear_attention_step: .*{message}"):
        linear_attention_step(**right | changes)
