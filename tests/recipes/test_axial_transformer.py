"""What the recipe of the Axial Transformer measures, and how it judges."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from attensor.data.pictures import read_picture
from attensor.recipes import axial_transformer as recipe
from attensor.recipes._runs import Runs

RUNS = {recipe.AXIAL: {"nats": 1.30}, recipe.ROWS: {"nats": 1.46}}
TIMES = [[256, 1.0, 2.0], [4096, 60.0, 190.0]]
DRAWN = {
    16: {"seconds": {"slow": 10.0, "semi-parallel": 1.9, "cached": 0.9}, "same": True},
    32: {"seconds": {"slow": 90.0, "semi-parallel": 9.0, "cached": 3.0}, "same": True},
}


def judged(nats: float = 1.30, rows: float = 1.46, marginal: float = 1.64, **seconds: float) -> list[bool]:
    runs = Runs(
        {name: [{"nats": n, "curve": [[1, n]]}] * 3 for name, n in {recipe.AXIAL: nats, recipe.ROWS: rows}.items()}
    )
    drawn = copy.deepcopy(DRAWN)
    drawn[16]["seconds"] |= {k.replace("_", "-"): v for k, v in seconds.items() if k != "all"}
    times = [TIMES[0], [4096, 60.0, seconds.get("all", 190.0)]]
    return [check.passed for check in recipe.judge(runs, marginal, times, drawn).checks]


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, set()),
        ({"rows": 1.36}, {0}),
        ({"marginal": 1.51}, {1}),
        ({"all": 179.0}, {2}),
        ({"semi_parallel": 2.1}, {4}),
        ({"cached": 0.96}, {5}),
    ],
    ids=str,
)
def test_it_is_judged_by_its_marks(changes: dict[str, float], failed: set[int]) -> None:
    assert {place for place, passed in enumerate(judged(**changes)) if not passed} == failed


def test_other_images_and_slow_caches_are_seen() -> None:
    runs = Runs({name: [{**run, "curve": [[1, 1.0]]}] * 2 for name, run in RUNS.items()})
    drawn: dict[int, dict[str, Any]] = copy.deepcopy(DRAWN)
    drawn[32] = {"seconds": DRAWN[32]["seconds"] | {"cached": 19.0}, "same": False}
    checks = recipe.judge(runs, 1.64, TIMES, drawn).checks
    assert [place for place, check in enumerate(checks) if not check.passed] == [3, 6]
    assert "of 2 sizes, drawn in float64 by three methods, the same: 1" in checks[3].text


@pytest.mark.slow
def test_a_variant_trains_and_its_pictures_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "BATCH_SIZE", 4)
    found = recipe.train_variant(recipe.AXIAL, seed=0, steps=1)
    assert found["nats"] < math.log(17) + 0.1
    originals, halves = (torch.tensor(found[name]) for name in ("originals", "halves"))
    assert torch.equal(halves[..., :4, :], originals[..., :4, :])
    assert (halves[..., 4:, :] == -1).all()
    for completion in torch.tensor(found["completions"]):
        assert torch.equal(completion[..., :4, :], originals[..., :4, :])
        assert not torch.equal(completion, originals)
    recipe.write_pictures(found, tmp_path / "samples.png")
    sheet, _ = read_picture(tmp_path / "samples.png", channels=1)
    assert sheet.shape == (1, 6 * (6 * 9 + 1), 6 * (8 * 9 + 1))
    row = 3 + 3 * 6 * 9
    assert sheet[0, row + 6 * 5, 9] == 96  # the lower half that is missing


def test_frequencies_say_more_than_nothing_and_less_than_a_model_is_to() -> None:
    assert 1.6 < recipe.fit_marginals() < 1.75
