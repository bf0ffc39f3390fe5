"""What the recipes of image mixers measure, on matrices and functions whose answers are known, and how they judge."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.recipes import _digits, l2vit, rala
from attensor.recipes._runs import Runs


def ranks_of(rank: int) -> Tensor:
    """[2, 11, 7] matrices with so many equal singular values."""
    left = torch.linalg.qr(torch.randn(2, 11, 7, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(2, 7, 7, dtype=torch.float64)).Q
    return 5.0 * left[..., :rank] @ right[..., :rank, :]


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_effective_rank_counts_equal_singular_values(rank: int) -> None:
    torch.testing.assert_close(rala.effective_rank(ranks_of(rank)), torch.full((2,), float(rank), dtype=torch.float64))


def test_what_the_ranks_are_taken_of() -> None:
    """The matrix before the last projection, and the sum of weighted keys times values, written out."""
    layer, x = rala._mixer(rala.BOTH), torch.randn(2, 3, 5, _digits.HIDDEN_SIZE)
    heads = layer.project(x)
    expected = (layer.attend(heads).flatten(-2) * heads.gate).flatten(1, 2)
    torch.testing.assert_close(rala._before_projection(layer, x), expected)
    q, k, v, *_ = heads
    queries, keys = (F.elu(y.flatten(1, 2)) + 1 for y in (q, k))
    scores = torch.einsum("bhd,bjhd->bjh", queries.mean(1), keys) / layer.head_dim**0.5
    weights = 15 * scores.softmax(1)
    buffer = torch.einsum("bjh,bjhk,bjhv->bhkv", weights, keys, v.flatten(1, 2))
    got = rala._kv_buffer(layer, x)
    torch.testing.assert_close(got / got.norm(), buffer / buffer.norm(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reach", [1, 3])
def test_near_mass_is_the_share_of_a_known_filter(reach: int) -> None:
    """A box filter of 2 reach + 1 cells: all of its derivatives are equal, 7 x 7 of them are near."""
    channels, side = 3, 2 * reach + 1
    kernel = torch.eye(channels)[:, :, None, None].expand(-1, -1, side, side)

    def box(x: Tensor) -> Tensor:
        return F.conv2d(x.movedim(-1, 1), kernel, padding=reach).movedim(1, -1)

    x = torch.randn(1, 5, 11, channels)
    assert l2vit.near_mass(box, x) == pytest.approx(1.0)
    everywhere = l2vit.near_mass(lambda y: y.sum((1, 2), keepdim=True).expand_as(y), x)
    near = [
        sum(abs(i - a) <= 3 and abs(j - b) <= 3 for a in range(5) for b in range(11))
        for i in range(5)
        for j in range(11)
    ]
    assert everywhere == pytest.approx(sum(near) / 55**2)


def test_a_classifier_trains_and_its_block_is_what_it_runs() -> None:
    model = _digits.Classifier(lambda: l2vit._mixer(l2vit.LINEAR), local_concentration=True)
    result = _digits.fit(model, seed=0, steps=5)
    assert [step for step, _ in result["curve"]] == [1, 2, 3, 4, 5]
    assert 0 <= result["accuracy"] <= 1
    model.eval()
    images = _digits.held_out_images(3)
    (block, x), *_ = model.inside(images)
    mixed = x + block.attn(block.norm1(x))
    mixed = mixed + block.local_mp(block.norm3(mixed))
    expected = mixed + block.mlp(block.norm2(mixed))
    torch.testing.assert_close(block(model.patch_embed(images).movedim(1, -1)), expected)


RALA_RUNS = {
    rala.PLAIN: {"accuracy": 0.5, "output_rank": 2.0, "kv_rank": 2.0},
    rala.WEIGHTED: {"accuracy": 0.8, "output_rank": 2.0, "kv_rank": 3.0},
    rala.GATED: {"accuracy": 0.6, "output_rank": 9.0, "kv_rank": 3.0},
    rala.BOTH: {"accuracy": 0.8, "output_rank": 6.1, "kv_rank": 3.0},
    rala.SOFTMAX: {"accuracy": 0.84, "output_rank": 3.0},
}
RALA_TIMES = [[196, 1.0, 0.5], [784, 2.0, 2.0], [6272, 10.0, 41.0], [12544, 21.0, 150.0]]


@pytest.mark.parametrize(
    ("variant", "changed", "failed"),
    [
        (rala.PLAIN, {}, 0),
        (rala.BOTH, {"output_rank": 5.9}, 1),
        (rala.WEIGHTED, {"accuracy": 0.64}, 2),
        (rala.BOTH, {"accuracy": 0.7}, 1),
        (rala.SOFTMAX, {"accuracy": 0.9}, 2),
    ],
    ids=str,
)
def test_rala_is_judged_by_its_marks(variant: str, changed: dict[str, float], failed: int) -> None:
    runs: dict[str, Any] = copy.deepcopy(RALA_RUNS)
    runs[variant] |= changed
    extra = {"curve": [[1, 0.1]], "output_ranks": [2.0, 3.0], "output_rank_before": 4.0}
    trained = Runs({name: [run | extra] * 3 for name, run in runs.items()})
    verdict = rala.judge(trained, RALA_TIMES)
    assert sum(not check.passed for check in verdict.checks) == failed
    assert rala.judge(trained, [[n, ours, 3.9 * ours] for n, ours, _ in RALA_TIMES]).outcome == "partly"
    assert rala.judge(trained, [[n, n**1.3, 9 * n**1.3] for n, *_ in RALA_TIMES]).outcome == "partly"


ENTROPIES = {"entropy_linear": 4.0, "entropy_softmax": 3.4}
L2VIT_RUNS = {
    l2vit.LINEAR: {"accuracy": 0.8, "mass_8": 0.4, "mass_16": 0.3, **ENTROPIES},
    l2vit.WITH_LCM: {
        "accuracy": 0.9,
        "mass_8": 0.7,
        "mass_16": 0.6,
        "mass_8_before_lcm": 0.4,
        "mass_16_before_lcm": 0.3,
    },
    l2vit.SOFTMAX: {"accuracy": 0.8, **ENTROPIES},
}


@pytest.mark.parametrize(
    ("variant", "changed", "failed"),
    [
        (l2vit.LINEAR, {}, 0),
        (l2vit.LINEAR, {"entropy_softmax": 3.6}, 1),
        (l2vit.SOFTMAX, {"entropy_linear": 3.8}, 1),
        (l2vit.WITH_LCM, {"mass_8": 0.59}, 1),
        (l2vit.WITH_LCM, {"mass_16": 0.44}, 1),
        (l2vit.WITH_LCM, {"accuracy": 0.84}, 2),
        (l2vit.SOFTMAX, {"accuracy": 0.86}, 1),
    ],
    ids=str,
)
def test_l2vit_is_judged_by_its_marks(variant: str, changed: dict[str, float], failed: int) -> None:
    runs: dict[str, Any] = copy.deepcopy(L2VIT_RUNS)
    runs[variant] |= changed
    trained = Runs({name: [run | {"curve": [[1, 0.1]]}] * 3 for name, run in runs.items()})
    times = [[256, 1.0, 1.0], [16384, 80.0, 900.0]]
    toys = Runs({clamp: [{"norms": [1.0, norm]}] * 3 for clamp, norm in zip(l2vit.CLAMPS, (2.0, 3.0))})
    verdict = l2vit.judge(trained, times, toys)
    assert sum(not check.passed for check in verdict.checks) == failed
    broken = Runs({**toys, "clamp 100": [{"norms": [1.0, None]}] * 3})
    for others in ((times, broken), ([times[0], [16384, 91.0, 900.0]], toys)):
        assert sum(not check.passed for check in l2vit.judge(trained, *others).checks) == failed + 1


def test_a_gradient_is_followed_in_the_toy() -> None:
    norms = l2vit.train_toy("clamp 100", seed=1, steps=3)["norms"]
    assert len(norms) == 3
    assert norms == l2vit.train_toy("clamp 100", seed=1, steps=3)["norms"]
    assert norms != l2vit.train_toy("clamp 1e-6", seed=1, steps=3)["norms"]
