"""How the recipe of attention taken apart judges, what it looks at, and that its models are of equal size."""

from __future__ import annotations

from typing import Any

import pytest

from attensor.recipes import deconstructing_attention as recipe
from attensor.recipes._runs import Runs

LAYER = {"entropy": 96.0, "sink": 0.1, "local_focus": [0.1, 0.2, 0.3, 0.4], "score": 5.0}
LOSSES = {"uniform no-mixing": 2.4, "uniform taylor": 2.4, "uniform key-scored": 2.3}


@pytest.mark.parametrize(
    ("losses", "skipped", "recalled", "missed"),
    [
        ({}, {}, {}, []),
        ({"uniform no-mixing": 2.15}, {}, {}, ["uniform MLP over standard"]),
        ({"hybrid taylor": 2.2}, {}, {}, ["hybrid Approx. over standard"]),
        ({"uniform key-scored": 2.0}, {}, {}, ["uniform Non-apx. over hybrid"]),
        ({"standard": 1.8}, {}, {}, ["over standard"] * 6),
        ({}, {"hybrid static-embedding": 2.3}, {}, ["skip over hybrid StaticEmbQK"]),
        ({}, {}, {"random-sequence": 0.75}, ["recall, standard over RndEmbQK"]),
        ({}, {}, {"static-embedding": 0.95}, []),
    ],
    ids=str,
)
def test_it_judges_by_the_marks_of_the_sheet(
    losses: dict[str, float], skipped: dict[str, float], recalled: dict[str, float], missed: list[str]
) -> None:
    losses = {**LOSSES, **losses}

    def result(name: str) -> dict[str, Any]:
        loss = losses.get(name, 2.0)
        layers = {"0": {**LAYER, "entropy": None} if "taylor" in name else LAYER, "1": LAYER}
        hybrid = {"skip": skipped.get(name, 3.0)} if "hybrid" in name else {}
        return {"loss": {"1": loss}, "curve": [[1, loss]], "layers": {} if "no-mixing" in name else layers, **hybrid}

    text = Runs({name: [result(name)] * 2 for name in recipe.MODELS})
    shares = {"standard": 1.0, **recalled}
    recall = Runs({v: [{"accuracy": shares.get(v, 0.2), "curve": [[1, 0.2]]}] * 2 for v in recipe.RECALLING})
    verdict = recipe.judge(text, recall)
    failed = [check.text for check in verdict.checks if not check.passed]
    assert len(failed) == len(missed)
    assert all(part in said for part, said in zip(missed, failed, strict=True))
    assert len(verdict.checks) == 1 + 6 + 3 + 6 + 3
    charts = {chart.title: chart.series for chart in verdict.charts}
    uniform, hybrid = (charts[f"How widely a token looks, {layout} layouts"] for layout in ("uniform", "hybrid"))
    assert uniform["standard"] == hybrid["standard"] == [(1.0, 1.0), (2.0, 1.0)]
    assert hybrid["Approx."] == [(2.0, 1.0)]  # NaN in the other layer
    assert "MLP" not in uniform
    assert verdict.figures["largest score before a softmax, uniform Non-apx."].startswith("5.000")


def test_all_models_have_the_same_number_of_parameters_and_say_what_their_layers_do() -> None:
    pytest.importorskip("transformers")
    for variant in ("standard", *recipe.VARIANTS):
        model = recipe.Logits(0, vocab_size=256, num_hidden_layers=4, variant=variant)
        assert sum(p.numel() for p in model.parameters()) == 213_824, variant
        found = recipe.look(model)
        assert len(found) == (0 if variant == "no-mixing" else 4)
        for layer in found.values():
            assert 0 < layer["sink"] < 1
            assert layer["score"] > 0
            assert layer["entropy"] is not None  # scores are small: weights near 1
