"""The recipe of kernelised attention with relative positions: its measurements run, its marks judge by the figures."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from attensor.recipes import nprf_rpe
from attensor.recipes._runs import Runs
from attensor.recipes.nprf_rpe import LENGTHS, NPRF, PRF, RECIPE, SHIFTS, SOFTMAX, TEXT, judge

WITHOUT, WITH = SHIFTS


def results(**changed: Any) -> tuple[Any, ...]:
    """Results of three seeds with which every mark is reached, but for what is changed."""
    found = {
        "near": 0.2,
        "far": 1.6,
        "prf": 2.5,
        "nprf": {"1": 2.2, "4": 2.3},
        "with": 0.99,
        "without": 0.06,
        "power": 1.15,
        "softmax": 0.2,
    }
    found |= changed
    curve = [[10, 3.0], [20, 2.5]]
    text = {
        PRF: [{"loss": found["prf"] and {"1": found["prf"] + 0.01 * i}, "curve": curve, "spikes": i} for i in range(3)],
        NPRF: [{"loss": found["nprf"], "curve": curve, "spikes": 0}] * 3,
        SOFTMAX: [{"loss": {"1": 2.15}, "curve": curve, "spikes": 0}] * 3,
    }
    shift = {m: [{"accuracy": found[key], "curve": curve}] * 3 for m, key in ((WITHOUT, "without"), (WITH, "with"))}
    seconds = {
        n: [{"fft": 0.1 * (n / 8192) ** found["power"], "softmax": found["softmax"] * (n / 8192) ** 2}] * 3
        for n in LENGTHS
    }
    errors = {0.5: [0.1] * 3, 1.0: [found["near"]] * 3, 4.0: [found["far"]] * 3}
    return tuple(map(Runs, (errors, text, shift, seconds)))


@pytest.mark.parametrize(
    ("changed", "mark"),
    [
        ({"near": 0.31}, "length 1"),
        ({"far": 1.1}, "length 4"),
        ({"prf": 2.25}, "less PRF"),
        ({"nprf": {"1": 2.31, "4": 2.3}}, "less softmax"),
        ({"nprf": {"1": 2.2, "4": 2.41}}, "4 times"),
        ({"with": 0.94}, "with bias above 95"),
        ({"without": 0.51}, "without bias below 50"),
        ({"power": 1.21}, "power of the length"),
        ({"softmax": 0.09}, "8192"),
    ],
    ids=str,
)
def test_each_mark_judges_by_its_figure(changed: dict[str, Any], mark: str) -> None:
    assert judge(*results()).outcome == "reproduced"
    verdict = judge(*results(**changed))
    assert verdict.outcome == "partly"
    assert [mark in check.text for check in verdict.checks if not check.passed] == [True]


def test_a_run_that_diverged_learned_nothing() -> None:
    assert judge(*results(prf=None)).outcome == "reproduced"
    verdict = judge(*results(nprf=None))
    assert {check.text for check in verdict.checks if not check.passed} >= {
        "NPRF + bias stays finite with every seed: 0 of 3"
    }
    assert verdict.figures[f"loss, {NPRF}, nats a byte"].startswith(f"{math.log(256):.3f}")


def test_the_power_of_a_power_law_is_found() -> None:
    assert judge(*results(power=1.07)).checks[-2].text.endswith("1.070 ± 0.000 (3 seeds)")


@pytest.mark.parametrize("mixer", list(TEXT))
def test_text_runs_are_repeatable(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nprf_rpe, "TEXT_BATCH", 2)
    monkeypatch.setattr("attensor.recipes._language._HELD_OUT_BYTES", 1024)
    first, second = (nprf_rpe.train_text(mixer, seed=1, steps=2) for _ in range(2))
    assert first == second
    assert set(first["loss"]) == ({"1", "4"} if mixer == NPRF else {"1"})
    json.dumps(first, allow_nan=False)


def test_divergence_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: Any, **__: Any) -> None:
        raise nprf_rpe.Diverged("nan")

    monkeypatch.setattr(nprf_rpe, "fit", fit)
    assert nprf_rpe.train_text(PRF, seed=1, steps=2) == {"loss": None, "curve": [], "spikes": 0}


def test_the_shift_task_asks_for_the_token_so_many_places_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nprf_rpe, "SHIFT_LENGTH", 40)
    found = nprf_rpe.train_shift(WITH, seed=1, steps=3)
    assert 0 <= found["accuracy"] < 0.3
    assert found["curve"][-1] == [3, found["accuracy"]]


def test_the_error_grows_with_the_length_of_the_vectors() -> None:
    near, far = (nprf_rpe.measure_error(radius, seed=0) for radius in (0.5, 4.0))
    assert 0 < near < 0.15
    assert 1.2 < far < 2.0


def test_times_are_measured_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nprf_rpe, "COMPARED_LENGTHS", (64,))
    assert set(nprf_rpe.measure_time(64, seed=0)) == {"fft", "softmax"}
    assert set(nprf_rpe.measure_time(65, seed=0)) == {"fft"}


def test_gradient_norms_are_those_before_clipping() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
    norms = nprf_rpe._watch_gradients(model)
    for _ in range(2):
        model.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
        total = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
        assert norms[-1] == pytest.approx(float(total))
    assert len(norms) == 2


def test_softmax_with_a_bias_reads_it_by_the_distance_backwards() -> None:
    layer, x = nprf_rpe.BiasedSoftmax(), torch.randn(1, 9, nprf_rpe.HIDDEN_SIZE)
    with torch.no_grad():
        layer.relative_bias[:, 3] = 100.0
        copied = layer.o_proj(layer.v_proj(x[:, 5:6]))
        torch.testing.assert_close(layer(x)[:, 8:9], copied, rtol=0, atol=1e-5)


def test_the_recipe_is_that_of_its_card() -> None:
    assert RECIPE.name == "nprf-rpe"
