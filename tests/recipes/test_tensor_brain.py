"""The recipe of the Tensor Brain: its cells at a small size, and a verdict that can go either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attensor.errors import DataError
from attensor.recipes import RecipeConfig
from attensor.recipes import tensor_brain as recipe
from attensor.recipes._runs import Runs


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in the place of a graph of PyKEEN."""
    rows = [f"e{i}\tr{k}\te{(i * (k + 1) + k) % 17}\n" for i in range(17) for k in range(15)]
    (tmp_path / "train.txt").write_text("".join(rows[:220]))
    (tmp_path / "valid.txt").write_text("".join(rows[220:238]))
    (tmp_path / "test.txt").write_text("".join(rows[238:]))
    read = recipe.open_graph
    monkeypatch.setattr(recipe, "open_graph", lambda name: read(str(tmp_path)))


@pytest.mark.usefixtures("graph")
def test_cells_at_a_small_size() -> None:
    completed = recipe.complete("umls, complex", seed=0, epochs=2)
    assert 0 < completed["mrr"] < 1
    assert len(completed["curve"]) == 2
    seen = recipe.perceive(recipe.SOFT, seed=0, steps=3)
    assert set(seen) >= {"predicate@1", "predicate@10", "subject@1", "spread subject", "curve"}
    told = recipe.label(recipe.SOFT, seed=0, steps=3)
    assert set(told) == {"known", "new"}
    assert all("class@1" in found for found in told.values())
    kept = recipe.keep_episodes(seed=0, steps=3)
    assert kept["deviation"] < 1e-12
    assert kept["kl"] > 0.05  # nothing is learned in three steps
    held = recipe.superpose(seed=0, trials=5)
    assert held["few"] == 1.0
    assert len(held["recall"]) == len(recipe.SIZES)


def results(*, feedback: float, mrr: float, deviation: float) -> dict[str, Runs]:
    def seeds(**numbers: float) -> list[dict[str, Any]]:
        return [{**{key: x + seed / 1000 for key, x in numbers.items()}, "curve": [[1, 0.1]]} for seed in range(3)]

    completed = Runs({name: seeds(mrr=mrr, **{"hits@10": 0.9}) for name in recipe.COMPLETED})
    completed["kinships, distmult"] = seeds(mrr=mrr - 0.2, **{"hits@10": 0.9})
    arms = {recipe.SOFT: feedback, recipe.DRAWN: feedback, recipe.NONE: 0.2, recipe.DIRECT: 0.12}
    seen = Runs(
        {arm: seeds(**{"predicate@1": x, "predicate@10": 0.6 + x, "spread subject": 0.5}) for arm, x in arms.items()}
    )
    labels = Runs(
        {
            recipe.SOFT: [{"known": {"class@1": feedback + 0.6, "subject@1": 0.8}, "new": {"class@1": 0.6}}] * 3,
            recipe.NONE: [{"known": {"class@1": 0.8, "subject@1": 0.8}, "new": {"class@1": 0.61}}] * 3,
        }
    )
    kept = Runs(episodes=[{"triple": 0.95, "kl": 0.01, "deviation": deviation}] * 3)
    held = Runs(states=[{"recall": [1.0] * len(recipe.SIZES), "few": 1.0}] * 3)
    return {"completed": completed, "seen": seen, "labels": labels, "kept": kept, "held": held}


def test_the_verdict_follows_the_numbers() -> None:
    good = recipe.judge(**results(feedback=0.3, mrr=0.9, deviation=1e-15))
    assert good.outcome == "reproduced"
    assert "predicate first, P-Direct" in good.figures
    bad = recipe.judge(**results(feedback=0.13, mrr=0.7, deviation=1e-9))
    missed = " ".join(check.text for check in bad.checks if not check.passed)
    expected = ("UMLS, complex", "Kinships, complex, MRR", "P-SA over P-Direct", "P-SA over no feedback", "1e-12")
    for part in (*expected, "class of learned"):
        assert part in missed


def test_without_the_graphs_it_says_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip download --no-deps pykeen"):
        recipe.RECIPE.run(RecipeConfig(folder=tmp_path))
