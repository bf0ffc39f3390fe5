"""What the recipe of PLDR-LLM measures, on matrices that are known, and how it judges."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attensor.recipes import pldr_llm as recipe
from attensor.recipes._runs import Runs

BEFORE = {"share": 1.0, "spread": 0.3, "own": 5.0, "first": 5.0, "identity": 5.0, "random": 5.0, "agreement": 0.8}
AFTER = {"share": 0.1, "spread": 0.02, "own": 2.0, "first": 2.002, "identity": 2.4, "random": 2.9, "agreement": 0.96}
TIMES = {recipe.KEPT: 1.0, recipe.TENSOR: 1.1, recipe.RECOMPUTED: 3.0, recipe.TWIN: 0.95}


def test_equal_rows_and_equal_operators_count_nothing() -> None:
    row, other = torch.randn(2, 1, 5), torch.randn(2, 5, 5)
    assert recipe.row_share(row.expand(2, 5, 5)).max() < 1e-12
    assert recipe.row_share(torch.tensor([[1.0, -1.0], [-1.0, 1.0]])) == 1
    assert recipe.spread(other.expand(4, 2, 5, 5)) < 1e-6
    apart = torch.stack([other * 0.9, other * 1.1])  # each a tenth away
    assert recipe.spread(apart) == pytest.approx(0.1)


def test_a_control_has_the_norm_of_what_it_replaces() -> None:
    matrix, other = torch.randn(3, 4, 4), 7 * torch.randn(3, 4, 4)
    torch.testing.assert_close(recipe._like(matrix, other).norm(dim=(1, 2)), other.norm(dim=(1, 2)))


@pytest.mark.parametrize(
    ("after", "losses", "times", "missed"),
    [
        ({}, {}, {}, []),
        ({"share": 0.3}, {}, {}, ["rows of A"]),
        ({"spread": 0.05}, {}, {}, ["at most 0.03"]),
        ({"first": 2.02, "own": 2.0, "identity": 2.4}, {}, {}, ["one prompt's G"]),
        ({"identity": 2.2}, {}, {}, ["identity"]),
        ({"random": 2.2}, {}, {}, ["random"]),
        ({"agreement": 0.9}, {}, {}, ["as without"]),
        ({"agreement": 0.79}, {}, {}, ["as without", "larger after"]),
        ({}, {recipe.RANDOM: 2.4}, {}, ["largest to least"]),
        ({}, {}, {recipe.TWIN: 0.8}, ["softmax attention's"]),
        ({}, {}, {recipe.RECOMPUTED: 1.9}, ["one with the net"]),
    ],
    ids=str,
)
def test_it_judges_by_the_marks_of_the_sheet(
    after: dict[str, float], losses: dict[str, float], times: dict[str, float], missed: list[str]
) -> None:
    def result(variant: str) -> dict[str, Any]:
        loss = losses.get(variant, 2.0)
        return {"loss": loss, "curve": [[0, 5.0], [5, loss]]}

    runs = Runs({variant: [result(variant)] * 2 for variant in recipe.VARIANTS})
    learned = {"readings": [BEFORE, {**AFTER, **after}], "transferred": result("")}
    runs[recipe.LEARNED] = [{**one, **learned} for one in runs[recipe.LEARNED]]
    verdict = recipe.judge(runs, {**TIMES, **times})
    failed = [check.text for check in verdict.checks if not check.passed]
    assert len(failed) == len(missed)
    assert all(part in text for part, text in zip(missed, failed, strict=True))
    assert len(verdict.charts) == 3
    assert "loss, transferred, nats a byte" in verdict.figures
