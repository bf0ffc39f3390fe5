"""The recipes of grid attention: what their variants are, what a measurement finds, and how they judge."""

from __future__ import annotations

import base64
import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attensor.data.pictures import read_picture
from attensor.metrics.receptive_field import receptive_field
from attensor.models.blocks import MLP
from attensor.nn import DualAttention, HaloAttention
from attensor.recipes import _grids, davit, halonet, maxvit
from attensor.recipes import neighborhood_attention as near
from attensor.recipes._runs import Runs

CURVE = {"curve": [[1, 0.1]]}
LINEAR = [[784, 1.0, 2.0], [3136, 4.0, 25.0], [12544, 17.0, 380.0]]


def field_of(reach: int) -> list[list[float]]:
    """Equal shares of so many cells around the middle of 64 x 64."""
    shares = torch.zeros(64, 64)
    shares[32 - reach : 32 + reach, 32 - reach : 32 + reach] = 1 / (2 * reach) ** 2
    return shares.tolist()


def fields(**beyond: float) -> Runs:
    shares = {_grids.PLAIN_NAT: 0.01, _grids.DINAT: 0.1, _grids.MAXVIT: 0.4, _grids.DAVIT: 0.3, _grids.HALONET: 0.05}
    shares |= beyond
    return Runs(
        {
            name: [{"accuracy": 0.9, "beyond": share, "beyond_before": 0.5, "shares": field_of(8), **CURVE}] * 3
            for name, share in shares.items()
        }
    )


def runs_of(accuracies: dict[str, float], **more: Any) -> Runs:
    return Runs({name: [{"accuracy": value, **CURVE, **more}] * 3 for name, value in accuracies.items()})


def missed(verdict: Any) -> set[int]:
    return {place for place, check in enumerate(verdict.checks) if not check.passed}


DAVIT = {
    davit.DIGITS: {davit.DUAL: 0.9, davit.SPATIAL: 0.9, davit.CHANNEL: 0.89, davit.REVERSED: 0.91},
    davit.TEXTURES: {davit.DUAL: 0.9, davit.SPATIAL: 0.5, davit.CHANNEL: 0.9, davit.REVERSED: 0.9},
}
REACH = {"beyond": 156, davit.SPATIAL: 0, davit.CHANNEL: 156}


@pytest.mark.parametrize(
    ("task", "variant", "accuracy", "failed"),
    [
        (davit.DIGITS, davit.DUAL, 0.9, set()),
        (davit.DIGITS, davit.SPATIAL, 0.906, {0}),
        (davit.TEXTURES, davit.CHANNEL, 0.906, {1}),
        (davit.TEXTURES, davit.SPATIAL, 0.89, {2}),
        (davit.DIGITS, davit.REVERSED, 0.92, {3}),
        (davit.DIGITS, davit.REVERSED, 0.88, {3}),
    ],
    ids=str,
)
def test_davit_is_judged_by_its_marks(task: str, variant: str, accuracy: float, failed: set[int]) -> None:
    accuracies = copy.deepcopy(DAVIT)
    accuracies[task][variant] = accuracy
    trained = {name: runs_of(values) for name, values in accuracies.items()}
    assert missed(davit.judge(trained, _grids.Seen(REACH, LINEAR, fields()))) == failed
    for place, changed in ((4, {davit.SPATIAL: 1}), (5, {davit.CHANNEL: 155})):
        assert missed(davit.judge(trained, _grids.Seen(REACH | changed, LINEAR, fields()))) == failed | {place}
    steep, flat = [LINEAR[0], [3136, 5.6, 25.0]], [LINEAR[0], [3136, 4.0, 19.0]]
    for place, times in ((6, steep), (7, flat)):
        assert missed(davit.judge(trained, _grids.Seen(REACH, times, fields()))) == failed | {place}


def test_variants_of_davit_begin_with_the_same_weights_and_attend_as_they_say() -> None:
    models = {}
    for variant in davit.KINDS:
        torch.manual_seed(3)
        models[variant] = davit.build(variant, num_classes=6)
    weights = [dict(model.named_parameters()) for model in models.values()]
    assert all(torch.equal(weights[0][name], other[name]) for other in weights[1:] for name in weights[0])
    for variant, model in models.items():
        kinds = [int(m.sees_channels) for m in model.modules() if isinstance(m, DualAttention)]
        assert kinds == [*davit.KINDS[variant]] * 2
    assert davit.measure_reach() == REACH


MAXVIT = {
    body: {variant: 0.9 if variant == maxvit.FULL else 0.8 for variant in variants}
    for body, variants in maxvit.VARIANTS.items()
}


@pytest.mark.parametrize(
    ("body", "accuracy", "failed"),
    [(maxvit.ALONE, 0.8, set()), (maxvit.PUBLISHED, 0.86, {0}), (maxvit.ALONE, 0.86, {1})],
)
def test_maxvit_is_judged_by_its_marks(body: str, accuracy: float, failed: set[int]) -> None:
    accuracies = copy.deepcopy(MAXVIT)
    accuracies[body][maxvit.WINDOWS] = accuracy
    trained = {name: runs_of(values) for name, values in accuracies.items()}
    reach = maxvit.measure_reach()
    assert reach == {maxvit.FULL: [16, 240], maxvit.WINDOWS: [16, 0]}
    assert missed(maxvit.judge(trained, _grids.Seen(reach, LINEAR, fields()))) == failed
    for place, changed in ((2, {maxvit.FULL: [16, 239]}), (3, {maxvit.WINDOWS: [16, 1]})):
        assert missed(maxvit.judge(trained, _grids.Seen(reach | changed, LINEAR, fields()))) == failed | {place}


@pytest.mark.parametrize("build", [maxvit._published, maxvit._alone])
def test_variants_of_maxvit_begin_with_the_same_weights_and_attend_as_they_say(build: Any) -> None:
    models = {}
    for variant in maxvit.PATTERNS:
        torch.manual_seed(3)
        models[variant] = build(variant, 4)
    weights = [dict(model.named_parameters()) for model in models.values()]
    assert all(torch.equal(weights[0][name], other[name]) for other in weights[1:] for name in weights[0])
    for variant, model in models.items():
        assert [m.pattern for m in model.modules() if hasattr(m, "pattern")] == [*maxvit.PATTERNS[variant]] * 2


HALONET = dict.fromkeys(halonet.VARIANTS, 0.9)
LAYER = {
    "seconds": {halonet.WHOLE: 1.0, halonet.PER_CELL: 2.1, halonet.STRIDED: 0.4, halonet.POOLED: 1.0},
    "peak": {halonet.WHOLE: 1.0, halonet.PER_CELL: 8.1},
}
SHIFT = {"4": 1e-16, "1": 0.1}


@pytest.mark.parametrize(
    ("variant", "accuracy", "failed"),
    [
        (halonet.STRIDED, 0.9, set()),
        (halonet.STRIDED, 0.88, {4}),
        (halonet.CONVOLUTION, 0.92, {5}),
        ("halo 0", 0.91, {6}),
        ("halo 2", 0.89, {7}),
        ("halo 1", 0.894, {6}),
    ],
)
def test_halonet_is_judged_by_its_marks(variant: str, accuracy: float, failed: set[int]) -> None:
    trained = runs_of(HALONET | {variant: accuracy}, parameters=1000)
    assert missed(halonet.judge(trained, LAYER, SHIFT, fields())) == failed
    changes = (
        (0, {"seconds": LAYER["seconds"] | {halonet.PER_CELL: 1.9}}),
        (2, {"peak": LAYER["peak"] | {halonet.PER_CELL: 7.9}}),
        (3, {"seconds": LAYER["seconds"] | {halonet.STRIDED: 0.46}}),
    )
    for place, changed in changes:
        assert missed(halonet.judge(trained, LAYER | changed, SHIFT, fields())) == failed | {place}
    for changed_shift in ({"4": 1e-9}, {"1": 1e-4}):
        assert missed(halonet.judge(trained, LAYER, SHIFT | changed_shift, fields())) == failed | {8}


def test_the_convolution_has_the_parameters_of_the_attention() -> None:
    attention, convolution = (halonet._count(halonet.build(name)) for name in ("halo 1", halonet.CONVOLUTION))
    assert attention == pytest.approx(convolution, rel=0.03)


def test_pooled_attention_is_the_mean_of_all_queries() -> None:
    torch.manual_seed(3)
    pooled = halonet.build(halonet.POOLED).double()
    torch.manual_seed(3)
    strided = halonet.build(halonet.STRIDED).double()
    layer = pooled.stages[1].get_submodule("0").self_attn
    other = strided.stages[1].get_submodule("0").self_attn
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))
    whole = HaloAttention(halonet.INNER, halonet.HEADS, block_size=4, halo_size=1, output_projection=False).double()
    whole.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 12, halonet.INNER, dtype=torch.float64)
    expected = whole(x).unflatten(1, (4, 2)).unflatten(3, (6, 2)).mean((2, 4))
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(other(x), whole(x)[:, ::2, ::2])


def test_a_shift_by_a_block_is_exact_and_one_by_a_cell_is_not() -> None:
    found = halonet.measure_shift()
    assert found["4"] <= 1e-12
    assert found["1"] > 1e-3


PEERS = {
    (64, 13): {"ours": 1.0, near.GATHER: 9.0, near.DENSE: 4.5},
    (32, 7): {"ours": 1.0, near.GATHER: 3.5, near.DENSE: 3.5},
}
LENGTHS = [[1024, 1.0, 1.0], [2048, 2.0, 3.5], [4096, 4.2, 13.0], [8192, 8.4, None]]
MEMORY = {"5": 100, "13": 125}


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, set()),
        ({"peers": {**PEERS, (64, 13): {**PEERS[64, 13], near.GATHER: 7.9}}}, {0}),
        ({"peers": {**PEERS, (64, 13): {**PEERS[64, 13], near.DENSE: 3.9}}}, {1}),
        ({"peers": {**PEERS, (32, 7): {**PEERS[32, 7], near.DENSE: 2.9}}}, {3}),
        ({"lengths": [*LENGTHS[:3], [8192, 11.0, None]]}, {4}),
        ({"lengths": [[1024, 1.0, 1.2], *LENGTHS[1:]]}, {5}),
        ({"memory": {"5": 100, "13": 131}}, {6}),
        ({"differences": [0.0, 2e-4]}, {7}),
        ({"trained": {near.NEAR: 0.98}}, {8}),
        ({"trained": {near.NEAR: 0.94, near.DILATED: 0.931}}, set()),
        ({"trained": {near.NEAR: 0.94, near.DILATED: 0.929}}, {8, 10}),
        ({"seconds": 61.0}, {9, 10}),
        ({"fields": {_grids.DINAT: 0.009}}, {11}),
    ],
    ids=str,
)
def test_neighborhood_attention_is_judged_by_its_marks(changes: dict[str, Any], failed: set[int]) -> None:
    accuracies = {near.NEAR: 0.95, near.DILATED: 0.96, **changes.get("trained", {})}
    trained = runs_of(accuracies, seconds=changes.get("seconds", 20.0))
    verdict = near.judge(
        trained,
        changes.get("differences", [1e-6, 1e-5]),
        changes.get("peers", PEERS),
        changes.get("lengths", LENGTHS),
        changes.get("memory", MEMORY),
        fields(**changes.get("fields", {})),
    )
    assert missed(verdict) == failed


@pytest.mark.slow
def test_losses_are_compared_with_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "PARITY_STEPS", 2)
    monkeypatch.setitem(_grids.SETTINGS, "batch_size", 4)
    assert near.compare_losses(seed=1) < 1e-5
    forms: list[str] = []

    @contextlib.contextmanager
    def another(form: str) -> Iterator[None]:
        """The second time the layers do not look at what is given to them."""
        forms.append(form)
        with pytest.MonkeyPatch.context() as patch:
            if form == "reference":
                patch.setattr("attensor.nn.neighborhood.neighborhood_attention", lambda q, k, v, **_: v)
            yield

    monkeypatch.setattr(near.attensor, "backend", another)
    assert near.compare_losses(seed=1) > 1e-5
    assert forms == ["torch", "reference"]


@pytest.mark.slow
def test_a_field_is_measured_before_and_after_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of NAT ends where its windows end, at any weights."""
    monkeypatch.setitem(_grids.SETTINGS, "batch_size", 4)
    monkeypatch.setattr(_grids, "FIELD_IMAGES", 2)
    found = _grids.measure_field(_grids.PLAIN_NAT, seed=0, steps=1)
    shares = torch.tensor(found["shares"])
    assert shares.shape == (64, 64)
    assert float(shares.sum()) == pytest.approx(1.0)
    assert (shares[0] == 0).all()
    assert 0 < found["beyond"] < found["beyond_before"] + 0.2 < 0.5


@pytest.mark.parametrize("family", list(_grids.FAMILIES))
def test_local_families_end_and_global_ones_do_not(family: str) -> None:
    """Of 128 x 128 pixels, the corner moves the middle cell where channels or a grid connect them."""
    torch.manual_seed(0)
    model = _grids.FAMILIES[family]().eval()
    field = receptive_field(model.forward_features, torch.randn(1, 1, 128, 128))
    assert bool(field.shares[0, 0] > 0) == (family in (_grids.MAXVIT, _grids.DAVIT))


def test_pictures_show_zeros_apart_and_the_largest_share_brightest(tmp_path: Path) -> None:
    picture = _grids.field_picture(fields())
    assert [tile.name for tile in picture.tiles] == list(_grids.FAMILIES)
    assert picture.tiles[1].note == "beyond 32 pixels: 0.10"
    (tmp_path / "tile.png").write_bytes(base64.b64decode(picture.tiles[0].png))
    pixels, _ = read_picture(tmp_path / "tile.png", channels=3)
    assert pixels.shape == (3, 64, 64)
    assert pixels[:, 0, 0].tolist() == _grids._NOTHING.tolist()
    assert pixels[:, 32, 32].tolist() == _grids._RAMP[-1].tolist()
    _grids.write_fields(fields(), tmp_path / "sheet.png")
    assert read_picture(tmp_path / "sheet.png", channels=3)[0].shape == (3, 3 * 68, 3 * (5 * 66 + 2))


@pytest.mark.parametrize("block", [_grids.DAVIT, _grids.MAXVIT])
def test_what_is_timed_keeps_the_map(block: str) -> None:
    timed = _grids._timed_block(block)
    x = torch.randn(1, 7, 14, _grids.TIMED_WIDTH)
    assert timed(x).shape == x.shape
    assert sum(isinstance(module, MLP) for module in timed.modules()) == 2
    assert sum(p.numel() for p in timed.parameters()) > 2 * 12 * _grids.TIMED_WIDTH**2
    rows = _grids.time_block(block, [7, 14], rounds=1)
    assert [row[0] for row in rows] == [49, 196]


def test_a_cell_is_reached_if_its_derivative_is_not_zero() -> None:
    class Shift(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.roll((1, -2), (1, 2))

    reached = _grids.reached_cells(Shift(), 3, 9)
    assert reached.nonzero().tolist() == [[3, 6]]
