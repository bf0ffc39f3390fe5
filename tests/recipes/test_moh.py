"""How the recipe of mixture of heads judges, and what it swaps and draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from attensor.nn import SoftmaxAttention
from attensor.recipes import _diffused_digits, moh
from attensor.recipes._language import decoder
from attensor.recipes._runs import Runs

SEEDS = range(3)


def scratch(**changed: Any) -> Runs:
    """Losses and balances of three seeds that are alike."""
    losses = {moh.MOST: 2.04, moh.HALF: 2.02, moh.FREE: 2.03} | changed.get("loss", {})
    balances = {moh.MOST: 1.02, moh.HALF: 1.01, moh.FREE: 1.4} | changed.get("balance", {})
    return Runs(
        {v: [{"loss": {"1": losses[v]}, "balance": balances[v], "curve": [[5, 2.0]]} for _ in SEEDS] for v in losses}
    )


def tuned(**changed: Any) -> Runs:
    before = {moh.ALL: 2.0, moh.HARD: 2.02, moh.SOFT: 2.1, moh.PAPER: 2.9} | changed.get("before", {})
    after = {moh.ALL: 1.99, moh.HARD: 1.995, moh.SOFT: 2.05} | changed.get("after", {})
    return Runs({moh.ALL: [{"before": before, "after": after, "curve": [[5, 2.0]]} for _ in SEEDS]})


def drawn(ratio: float = 1.0) -> Runs:
    losses = {moh.DENSE_DIT: 0.2, moh.ROUTED_DIT: 0.2 * ratio}
    return Runs({v: [{"loss": loss, "curve": [[5, loss]], "right": 0.9} for _ in SEEDS] for v, loss in losses.items()})


TIMES = {"all": 1.0, "half": 0.6, "all, causal": 1.0, "half, causal": 0.9}


def missed(*given: Any) -> list[str]:
    return [check.text for check in moh.judge(*given).checks if check.mark != "reached"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((scratch(), tuned(), drawn(), TIMES), ""),
        ((scratch(loss={moh.HALF: 2.06}), tuned(), drawn(), TIMES), "50 % of the heads from scratch"),
        ((scratch(loss={moh.MOST: 2.06}), tuned(), drawn(), TIMES), "75 % of the heads from scratch"),
        ((scratch(balance={moh.MOST: 1.2}), tuned(), drawn(), TIMES), "loads with their loss"),
        ((scratch(balance={moh.FREE: 1.01}), tuned(), drawn(), TIMES), "loads without it"),
        ((scratch(), tuned(before={moh.HARD: 2.06}), drawn(), TIMES), "converted, hard gates by queries, untuned"),
        ((scratch(), tuned(before={moh.PAPER: 2.2}), drawn(), TIMES), "the paper's scale, untuned"),
        ((scratch(), tuned(after={moh.HARD: 2.02}), drawn(), TIMES), "tuned, hard gates"),
        ((scratch(), tuned(), drawn(1.03), TIMES), "noise told wrongly"),
        ((scratch(), tuned(), drawn(), TIMES | {"half": 0.9}), "half of 16 heads"),
    ],
)
def test_marks_are_those_of_the_sheet(given: tuple[Any, ...], words: str) -> None:
    found = missed(*given)
    assert len(found) == bool(words)
    assert not words or words in found[0]


def test_a_converted_model_with_hard_gates_has_the_weights_it_had() -> None:
    model = decoder(lambda index: SoftmaxAttention(64, 8), seed=0, num_layers=2).eval()
    swapped = moh._swapped(model, 0, {"router": "query-norm", "gate_scale": "hard"}).eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(swapped.state_dict()[name], tensor)
    for layer in swapped.layers:
        layer.attn.router.num_chosen = 4
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(swapped(tokens), model(tokens))  # all four that can be chosen


def test_samples_are_classes_in_a_row(tmp_path: Path) -> None:
    """Each image of one level, 20 times its class and 5 more in the second model: ten columns, ten rows, grey edges."""
    levels = [20 * (image % 10) for image in range(50) for _ in range(64)]
    _diffused_digits.write_samples({"a": levels, "b": [level + 5 for level in levels]}, tmp_path / "samples.png")
    picture = Image.open(tmp_path / "samples.png")
    assert picture.size == (4 * 100, 4 * 100)
    for row, more in ((0, 0), (4, 0), (5, 5), (9, 5)):
        found = [picture.getpixel((40 * column + 20, 40 * row + 20)) for column in range(10)]
        assert found == [20 * c + more for c in range(10)]
    assert picture.getpixel((0, 0)) == picture.getpixel((40, 20)) == 96
