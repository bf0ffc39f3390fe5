"""Rank-augmented linear attention against its published definition, written out with all pairs of cells."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.nn import Heads, RankAugmentedLinearAttention, grid_rotary_embedding
from tests.conformance.cases import weights
from tests.golden.drawn import golden, summaries, uniform, weighed
from tests.golden.drawn import weights as drawn_weights

B, HEIGHT, WIDTH, H, D = 2, 3, 5, 3, 8
C, CELLS = H * D, HEIGHT * WIDTH
PARTS = ("kv_weighting", "output_gate", "rotary", "lepe")
COMBINATIONS = [dict(zip(PARTS, on)) for on in itertools.product([False, True], repeat=4)]


def build(**options: Any) -> tuple[RankAugmentedLinearAttention, Tensor]:
    layer = RankAugmentedLinearAttention(C, H, **options, dtype=torch.float64)
    return layer, torch.randn(B, HEIGHT, WIDTH, C, dtype=torch.float64)


def turned(x: Tensor) -> Tensor:
    """x [B, H, cells, D] times cos plus its pairs turned by a right angle times sin, as published."""
    base = torch.tensor([1 / 10000 ** (i / (D // 4 - 1)) for i in range(D // 4)], dtype=x.dtype)
    base = base.repeat_interleave(2)  # [D / 2]
    angles = torch.stack([torch.cat([row * base, column * base]) for row in range(HEIGHT) for column in range(WIDTH)])
    right = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * angles.cos() + right * angles.sin()


def published(layer: RankAugmentedLinearAttention, hidden_states: Tensor) -> Tensor:
    """Channels first, with the matrix of all weights [B, H, cells, cells]."""
    state = layer.state_dict(keep_vars=True)
    maps = F.conv2d(hidden_states.permute(0, 3, 1, 2), state["qkvo.weight"], state["qkvo.bias"]).split(C, 1)
    q, k, v = (x.reshape(B, H, D, CELLS).mT for x in maps[:3])
    q, k = F.elu(q) + 1, F.elu(k) + 1
    if layer.kv_weighting:
        w = torch.einsum("bhd,bhjd->bhj", q.mean(2) * D**-0.5, k).softmax(-1)
        k = CELLS * w[..., None] * k
    divisors = torch.einsum("bhid,bhd->bhi", q, k.mean(2)) + 1e-6
    numerators = (turned(q) @ turned(k).mT if layer.rotary else q @ k.mT) / CELLS
    out = numerators / divisors[..., None] @ v
    out = out.mT.reshape(B, C, HEIGHT, WIDTH)
    if layer.lepe is not None:
        out = out + F.conv2d(maps[2], state["lepe.weight"], state["lepe.bias"], padding=2, groups=C)
    if layer.output_gate:
        out = out * maps[3]
    return F.conv2d(out, state["proj.weight"], state["proj.bias"]).permute(0, 2, 3, 1)


@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda o: "+".join(p for p in PARTS if o[p]) or "plain")
def test_equals_the_published_definition(options: dict[str, bool]) -> None:
    """Output and all gradients, with every combination of its parts."""
    layer, x = build(**options)
    x.requires_grad_()
    results = []
    for f in (layer, lambda y: published(layer, y)):
        out = f(x)
        results.append([out, *torch.autograd.grad((out * weights(out)).sum(), [x, *layer.parameters()])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_without_rotation_outputs_are_averages_of_the_values() -> None:
    """Convex but for eps: 1 - weights' sum is 1e-6 over the mean weight."""
    layer, _ = build(rotary=False)
    q, k, v = torch.randn(3, B, HEIGHT, WIDTH, H, D, dtype=torch.float64)
    out = layer.attend(Heads(q, k, torch.ones_like(v)))
    torch.testing.assert_close(out, torch.ones_like(out), rtol=1e-5, atol=0)
    out = layer.attend(Heads(q, k, v))
    assert (out <= v.amax((1, 2), keepdim=True)).all()
    assert (out >= v.amin((1, 2), keepdim=True) * (1 + 1e-5)).all()


def test_without_positions_the_order_of_the_cells_does_not_matter() -> None:
    layer, x = build(rotary=False, lepe=False)
    order = torch.randperm(CELLS)
    shuffled = x.flatten(1, 2)[:, order].view_as(x)
    torch.testing.assert_close(layer(shuffled).flatten(1, 2), layer(x).flatten(1, 2)[:, order], rtol=1e-10, atol=1e-12)


def test_keys_and_shapes_are_the_published_ones() -> None:
    shapes = {key: tuple(value.shape) for key, value in build()[0].state_dict().items()}
    assert shapes == {
        "qkvo.weight": (4 * C, C, 1, 1),
        "qkvo.bias": (4 * C,),
        "lepe.weight": (C, 1, 5, 5),
        "lepe.bias": (C,),
        "proj.weight": (C, C, 1, 1),
        "proj.bias": (C,),
    }
    fewer = build(output_gate=False, lepe=False)[0].state_dict()
    assert {key: tuple(value.shape) for key, value in fewer.items()} == {
        **{key: shape for key, shape in shapes.items() if key.startswith("proj")},
        "qkvo.weight": (3 * C, C, 1, 1),
        "qkvo.bias": (3 * C,),
    }


@pytest.mark.parametrize("lepe", [False, True])
def test_is_drawn_anew_after_the_meta_device(lepe: bool) -> None:
    with torch.device("meta"):
        empty, _ = build(lepe=lepe)
    filled = empty.to_empty(device="cpu")
    for tensor in filled.state_dict().values():
        tensor.fill_(float("nan"))
    filled.reset_parameters()
    assert filled(build()[1]).isfinite().all()


def test_turns_by_row_and_column() -> None:
    """Against complex multiplication; low precision keeps its dtype and exact angles."""
    x = torch.randn(B, CELLS, H, D, dtype=torch.float64)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    expected = torch.empty_like(pairs)
    for cell, (row, column) in enumerate(itertools.product(range(HEIGHT), range(WIDTH))):
        for i in range(D // 2):
            half, place = divmod(i, D // 4)
            angle = (column if half else row) * 10000.0 ** (-place / (D // 4 - 1))
            turn = torch.tensor(complex(math.cos(angle), math.sin(angle)))
            expected[:, cell, :, i] = pairs[:, cell, :, i] * turn
    expected = torch.view_as_real(expected).flatten(-2)
    torch.testing.assert_close(grid_rotary_embedding(x, (HEIGHT, WIDTH)), expected, rtol=1e-6, atol=1e-7)
    low = grid_rotary_embedding(x.bfloat16(), (HEIGHT, WIDTH))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(
        low, grid_rotary_embedding(x.bfloat16().double(), (HEIGHT, WIDTH)).bfloat16(), rtol=8e-3, atol=8e-3
    )


def test_turned_scores_depend_on_offsets_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, D, dtype=torch.float64)

    def score(at: tuple[int, int], other: tuple[int, int]) -> Tensor:
        turned_q, turned_k = (grid_rotary_embedding(x.expand(1, 7 * 11, 1, D), (7, 11)) for x in (q, k))
        return turned_q[0, 11 * at[0] + at[1], 0] @ turned_k[0, 11 * other[0] + other[1], 0]

    torch.testing.assert_close(score((0, 2), (3, 1)), score((3, 10), (6, 9)), rtol=1e-10, atol=1e-10)
    for other in ((3, 2), (2, 1), (1, 3)):
        assert not torch.isclose(score((0, 2), (3, 1)), score((0, 2), other))


def test_sizes_are_checked() -> None:
    layer, x = build()
    with pytest.raises(
        ValueError, match=r"RankAugmentedLinearAttention: rotation.*got hidden_size 18 / num_heads 3 = 6"
    ):
        RankAugmentedLinearAttention(18, 3)
    assert RankAugmentedLinearAttention(18, 3, rotary=False).head_dim == 6
    with pytest.raises(ValueError, match=r"must be \[B, height, width, C\], got \[2, 15, 24\]"):
        layer(x.flatten(1, 2))
    assert "kv_weighting=True" in repr(layer)
    with pytest.raises(ValueError, match=r"RankAugmentedLinearAttention: attention must be .*linear.*softmax"):
        build(attention="vanilla")


@pytest.mark.parametrize("attention", ["linear", "softmax"])
def test_numbers_are_those_of_the_authors_code(attention: str) -> None:
    """The layer and its twin: output, gradients of the input and of every parameter."""
    layer = RankAugmentedLinearAttention(C, H, attention=attention, dtype=torch.float64)
    drawn = drawn_weights({f"attention.{key}": value.shape for key, value in layer.state_dict().items()})
    layer.load_state_dict({key.removeprefix("attention."): value for key, value in drawn.items()})
    x = uniform("map", 2, C, 5, 7).requires_grad_()
    out = layer(x.movedim(1, -1)).movedim(-1, 1)
    weighed(out).backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    numbers = golden("rala")
    for name, tensor in {"out": out, "dx": x.grad, "dp": summaries(gradients)}.items():
        torch.testing.assert_close(tensor, numbers[f"{attention}.{name}"], rtol=1e-10, atol=1e-10)


def test_tables_are_those_of_the_authors_code() -> None:
    """Turned, (1, 0) is (cos, sin) of each pair of channels; there each angle stands twice."""
    numbers, ones = golden("rala"), torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(D // 2)
    found = grid_rotary_embedding(ones.expand(1, 35, 1, D), (5, 7))[0, :, 0]
    for name, place in (("cos", 0), ("sin", 1)):
        torch.testing.assert_close(found[:, place::2], numbers[name][:, ::2], rtol=1e-12, atol=1e-12)
        assert torch.equal(numbers[name][:, ::2], numbers[name][:, 1::2])


@pytest.mark.parametrize("options", [o for o in COMBINATIONS if o["kv_weighting"]], ids=str)
def test_the_softmax_twin_equals_its_definition(options: dict[str, bool]) -> None:
    """All pairs written out; weighting of keys, which it has not, changes nothing."""
    layer, x = build(attention="softmax", **options)
    state = layer.state_dict()
    maps = F.conv2d(x.permute(0, 3, 1, 2), state["qkvo.weight"], state["qkvo.bias"]).split(C, 1)
    q, k, v = (one.reshape(B, H, D, CELLS).mT for one in maps[:3])
    q, k = (turned(q), turned(k)) if options["rotary"] else (q, k)
    out = ((q @ k.mT * D**-0.5).softmax(-1) @ v).mT.reshape(B, C, HEIGHT, WIDTH)
    if options["lepe"]:
        out = out + F.conv2d(maps[2], state["lepe.weight"], state["lepe.bias"], padding=2, groups=C)
    out = out * maps[3] if options["output_gate"] else out
    expected = F.conv2d(out, state["proj.weight"], state["proj.bias"]).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    unweighted, _ = build(attention="softmax", **{**options, "kv_weighting": False})
    unweighted.load_state_dict(state)
    assert torch.equal(unweighted(x), layer(x))
