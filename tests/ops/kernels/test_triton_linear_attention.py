"""The Triton kernels of `linear_attention` equal its definition: values, states, gradients, in every schedule.

Without a GPU they run in Triton's interpreter, a program at a time, so the sizes are small.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.ops.test_linear_attention import DECAYS, make, weights
from torch import Tensor

from attensor.ops.linear_attention import linear_attention_reference

pytest.importorskip("triton", reason="the kernels are written in triton")

from attensor.ops.linear_attention.problem import LinearAttentionProblem
from attensor.ops.linear_attention.triton import chunked as run_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCHEDULES = ("parallel", "on_chip", "recurrent")
# the backward passes there are: the others are these once more
BACKWARD = {("parallel", decay) for decay in DECAYS} | {("on_chip", "none")}
SMALL = {"tokens": 19, "heads": 2, "key_heads": 1, "decay_heads": 2, "key_dim": 5, "value_dim": 7}
# an empty sequence, one of length 1, one across a border of chunks, an empty one, one more, two tokens in none
PACKED = torch.tensor([0, 0, 1, 18, 18, 24], device=DEVICE)


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Fill new memory with nan, so that what a kernel forgets to write is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def chunked(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, state: Tensor | None, packing: Tensor | None,
    scale: float, chunk_size: int | None, *, schedule: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    problem = LinearAttentionProblem(q, k, v, gates, scale, True, state, packing, chunk_size)
    return run_kernels(problem, schedule)


def run(tensors: dict, options: dict, dtype: torch.dtype, schedule: str | None = None) -> dict[str, Tensor]:
    """Output, state and gradients of a weighted loss, by the kernels or (no schedule) by the definition."""
    present = {name: x for name, x in tensors.items() if x is not None and name not in options.get("frozen", ())}
    for x in present.values():
        x.requires_grad_(options.get("gradients", True))
    packing, scale = options.get("packing"), 0.7
    if schedule is None:
        q, k, v, log_decay, initial_state = tensors.values()
        known = {"log_decay": log_decay, "initial_state": initial_state, "cu_seqlens": packing, "scale": scale}
        out, state = linear_attention_reference(q, k, v, **known, output_final_state=True)
    else:
        out, state = chunked(*tensors.values(), packing, scale, options.get("chunk_size", 16), schedule=schedule)
    found = {"out": out, "state": state}
    if options.get("gradients", True):
        # weights are rounded alike in both
        loss = sum((x * weights(x.double()).to(dtype)).sum() for x in found.values())
        grads = torch.autograd.grad(loss, list(present.values()), materialize_grads=True)
        found |= {f"gradient of {name}": g for name, g in zip(present, grads, strict=True)}
    return found


def check(
    schedule: str,
    tensors: dict[str, Tensor | None],
    *,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 1e-5,
    **options: object,
) -> None:
    """Relative root mean square error of every output and gradient against the definition in float64.

    Options: frozen (names of tensors without gradient), packing, chunk_size, gradients (whether they are checked).
    """
    wide = {"log_decay": torch.float32, "initial_state": torch.float32}
    low = {n: None if x is None else x.detach().to(DEVICE, wide.get(n, dtype)) for n, x in tensors.items()}
    exact = {n: None if x is None else x.double() for n, x in low.items()}
    found = run(low, options, dtype, schedule)
    for name, expected in run(exact, options, dtype).items():
        expected = expected.nan_to_num(0.0)  # the definition's gradient of a gate of -inf
        assert found[name].shape == expected.shape, name
        assert found[name].isfinite().all(), name
        error = (found[name].double() - expected).norm() / expected.norm().clamp(min=1e-30)
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("decay", DECAYS)
def test_equals_the_definition(decay: str, schedule: str) -> None:
    check(schedule, make(decay, batch=2, **SMALL), gradients=(schedule, decay) in BACKWARD)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("decay", DECAYS)
def test_packed_sequences(decay: str, schedule: str) -> None:
    sizes = SMALL | {"tokens": 24, "decay_heads": 1}
    check(schedule, make(decay, batch=1, rows=5, **sizes), packing=PACKED, gradients=(schedule, decay) in BACKWARD)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("decay", ["constant", "scalar"])
def test_gates_without_gradient_keep_the_backward_pass_on_chip(decay: str, packed: bool) -> None:
    sizes = SMALL | {"tokens": 24, "decay_heads": 1}
    tensors = make(decay, batch=1, rows=5 if packed else None, **sizes)
    check("on_chip", tensors, frozen=("log_decay",), packing=PACKED if packed else None)


@pytest.mark.parametrize("schedule", ["parallel", "on_chip"])
@pytest.mark.parametrize("decay", ["none", "scalar", "channel"])
def test_wide_heads_are_cut_into_tiles(decay: str, schedule: str) -> None:
    sizes = {"tokens": 17, "heads": 1, "key_heads": 1, "decay_heads": 1, "key_dim": 37, "value_dim": 35}
    backward = decay != "channel" or schedule == "parallel"
    check(
        schedule, make(decay, batch=1, **sizes), frozen=() if decay == "channel" else ("log_decay",), gradients=backward
    )


@pytest.mark.parametrize(
    ("decay", "heads", "key_heads", "decay_heads"), [("constant", 4, 2, 4), ("channel", 4, 2, 2), ("scalar", 3, 3, 3)]
)
def test_heads_may_be_grouped(decay: str, heads: int, key_heads: int, decay_heads: int) -> None:
    groups = {"heads": heads, "key_heads": key_heads, "decay_heads": decay_heads}
    check("parallel", make(decay, batch=1, **SMALL | {"tokens": 11} | groups))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "chunk_size", [32, pytest.param(64, marks=pytest.mark.slow), pytest.param(128, marks=pytest.mark.slow)]
)
def test_blocks_of_a_chunk(chunk_size: int, packed: bool) -> None:
    """Secondary chunking: products between blocks of 16 tokens and sums inside them, in ragged chunks."""
    sizes = SMALL | {"tokens": chunk_size + 13, "heads": 1, "decay_heads": 1}
    packing = torch.tensor([0, chunk_size + 7, chunk_size + 13], device=DEVICE) if packed else None
    tensors = make("channel", batch=1, rows=2 if packed else None, **sizes)
    check("parallel", tensors, packing=packing, chunk_size=chunk_size)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("floors", [(-30.0, -100.0, -1e4), (-torch.inf,)])
@pytest.mark.parametrize("decay", ["scalar", "channel"])
def test_large_gates_cost_no_digits(decay: str, floors: tuple[float, ...], schedule: str) -> None:
    """They stand among mild ones: differences of running sums would lose the mild ones' digits."""
    tensors = make(decay, batch=1, **SMALL | {"tokens": 35, "heads": 1, "decay_heads": 1})
    gates = tensors["log_decay"].detach()
    lots = torch.rand(gates.shape, generator=torch.Generator().manual_seed(1))
    for number, floor in enumerate(floors):
        gates[(lots > 0.1 * number) & (lots < 0.1 * (number + 1))] = floor
    check(schedule, tensors | {"log_decay": gates}, chunk_size=32, gradients=schedule == "parallel")


@pytest.mark.parametrize("schedule", ["parallel", "on_chip"])
@pytest.mark.parametrize("gates", [(-100.0, -0.3), (-torch.inf, -1e-7)])
def test_extreme_constant_decays(gates: tuple[float, float], schedule: str) -> None:
    tensors = make("constant", batch=1, **SMALL)
    check(schedule, tensors | {"log_decay": torch.tensor(gates)}, frozen=("log_decay",))


@pytest.mark.parametrize(
    ("decay", "schedule"),
    [("none", "on_chip"), ("constant", "parallel"), ("scalar", "on_chip"), ("channel", "parallel")],
)
def test_float16(decay: str, schedule: str) -> None:
    tensors = make(decay, batch=1, **SMALL | {"tokens": 11})
    check(schedule, tensors, dtype=torch.float16, tolerance=2e-3)


@pytest.mark.parametrize("decay", ["none", "channel"])
def test_bfloat16(decay: str) -> None:
    """In the interpreter, whose bfloat16 is wrong, the kernels compute in float32: the result is rounded once."""
    check("parallel", make(decay, batch=1, **SMALL | {"tokens": 11}), dtype=torch.bfloat16, tolerance=5e-3)


@pytest.mark.parametrize("decay", ["none", "constant"])
def test_without_initial_state(decay: str) -> None:
    check("parallel", make(decay, batch=1, **SMALL) | {"initial_state": None})
    check("on_chip", make(decay, batch=1, **SMALL) | {"initial_state": None}, frozen=("log_decay",))


@pytest.mark.parametrize("sizes", [{"tokens": 0}, {"batch": 0}, {"key_dim": 0}, {"value_dim": 0}])
@pytest.mark.parametrize("decay", ["constant", "channel"])
def test_nothing_to_compute(decay: str, sizes: dict[str, int]) -> None:
    check("parallel", make(decay, **{"batch": 1} | SMALL | sizes))


def test_no_sequences() -> None:
    tensors = make("scalar", batch=1, rows=0, **SMALL | {"tokens": 0})
    packing = torch.zeros(1, dtype=torch.long, device=DEVICE)
    check("parallel", tensors, packing=packing, gradients=False)


def test_any_chunk_size_and_the_automatic_schedule_give_the_same() -> None:
    tensors = [None if x is None else x.detach().float().to(DEVICE) for x in make("scalar", batch=1, **SMALL).values()]
    expected, state = chunked(*tensors, None, 0.3, 16, schedule="parallel")
    for chunk_size, schedule in ((1, "on_chip"), (None, None), (32, "on_chip")):
        out, other = chunked(*tensors, None, 0.3, chunk_size, schedule=schedule)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other, state, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="unknown schedule 'serial'; choose one of 'parallel'"):
        chunked(*tensors, None, 0.3, None, schedule="serial")
