"""Digits of `linear_attention` beside large gates, what it keeps for its backward pass, its errors."""

from __future__ import annotations

import pytest
import torch
from tests.ops.test_linear_attention import make, results
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops.linear_attention import linear_attention, linear_attention_reference, linear_attention_step

# torch.compile itself instantiates an autograd.Function while it traces one
both_backends = pytest.mark.usefixtures("backend")
PACKED = torch.tensor([0, 0, 7, 12, 19])


def test_vmap_over_packings_is_refused() -> None:
    tensors = make("none", batch=1, tokens=19, rows=4)
    with pytest.raises(NotImplementedError, match="packed sequences"):
        torch.func.vmap(lambda bounds: linear_attention(**tensors, cu_seqlens=bounds))(torch.stack([PACKED, PACKED]))


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
