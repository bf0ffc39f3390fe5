"""Variants times seeds: every pair is computed once and found under its variant, and differences are by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attensor.compare.fits import growth
from attensor.recipes import RecipeConfig, _runs
from attensor.recipes._runs import Runs, measure, trained
from attensor.train import TrainConfig

RUNS = Runs(
    {
        "a": [{"loss": {"1": 2.0}, "curve": [[1, 3.0], [2, 2.0]]}, {"loss": {"1": 2.4}, "curve": [[1, 5.0], [2, 2.4]]}],
        "b": [{"loss": {"1": 1.9}, "curve": []}, {"loss": {"1": 2.2}, "curve": [[1, 4.0], [2, 2.2]], "rank": 3.0}],
    }
)


def test_each_variant_gets_its_own_results_in_the_order_of_the_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def here(config: RecipeConfig, function: Any, cells: list[dict[str, Any]], *, at_once: int | None) -> list[Any]:
        asked.extend(cells)
        assert at_once == 1
        return [f"{cell['size']} {cell['seed']}" for cell in cells]

    monkeypatch.setattr(_runs, "run_cells", here)
    runs = measure(RecipeConfig(tmp_path), print, "size", iter((7, 2, 5)), seeds=2, at_once=1, steps=3)
    assert runs == {7: ["7 0", "7 1"], 2: ["2 0", "2 1"], 5: ["5 0", "5 1"]}
    assert asked[1] == {"size": 2, "seed": 0, "steps": 3}


def test_a_margin_is_the_interval_of_differences_with_the_same_seed() -> None:
    # 0.1 and 0.2: mean 0.15, half-width 12.706 * 0.05
    margin = RUNS.margin("a", "b", "loss.1")
    assert (margin.mean, margin.count) == (pytest.approx(0.15), 2)
    assert margin.half_width == pytest.approx(12.706 * 0.05, rel=1e-4)
    assert RUNS.of("a", lambda run: 2 * run["loss"]["1"]) == [4.0, 4.8]


def test_figures_are_of_the_variants_that_have_the_number() -> None:
    assert RUNS.figures("loss, {}, nats", "loss.1") == {
        "loss, a, nats": str(RUNS.interval("a", "loss.1")),
        "loss, b, nats": str(RUNS.interval("b", "loss.1")),
    }
    assert RUNS.figures("rank, {}", "rank") == {}


def test_a_curve_is_the_mean_over_the_runs_that_have_one() -> None:
    assert RUNS.curves() == {"a": [(1, 4.0), (2, 2.2)], "b": [(1, 4.0), (2, 2.2)]}


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_the_growth_of_a_power_law_is_its_power(power: float) -> None:
    assert growth([(n, 3.0 * n**power) for n in (3, 7, 50)]) == pytest.approx(power)


def test_a_training_leaves_its_last_score_and_its_curve() -> None:
    torch.manual_seed(0)
    model, target = nn.Linear(3, 1, bias=False), torch.tensor([[1.0, -2.0, 3.0]])

    def batch(step: int) -> torch.Tensor:
        return torch.randn(16, 3, generator=torch.Generator().manual_seed(step))

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return (model(x) - x @ target.mT).square().mean()

    found = trained(
        model, batch, loss, lambda model: float(loss(model, batch(-1))), TrainConfig(40, 0.3, evaluations=4)
    )
    assert [step for step, _ in found["curve"]] == [10, 20, 30, 40]
    assert found["score"] == found["curve"][-1][1] < 0.3 * found["curve"][0][1]
