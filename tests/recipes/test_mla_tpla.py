"""How the recipe of TPLA judges, and that its cuts are those that it names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attensor.nn import GroupedLatentAttention, LatentAttention, Slicing
from attensor.recipes import mla_tpla as recipe

LOSSES = {
    "MLA": 2.0,
    "GLA": 2.2,
    **{f"exact, {name}": 2.0 for name in recipe.BASES},
    "original, norm": 2.001,
    "original, softmax": 2.012,
    "original, both": 2.014,
    "original, both, gains": 2.014,
    "Hadamard, norm": 2.0,
    "Hadamard, softmax": 2.012,
    "Hadamard, both": 2.012,
    "Hadamard, both, gains": 2.012,
    "PCA, norm": 2.0,
    "PCA, softmax": 2.001,
    "PCA, both": 2.001,
    "PCA, both, gains": 2.002,
}


def results(**changed: float) -> list[dict[str, Any]]:
    """Of three seeds that are alike."""
    losses = {**LOSSES, **{name.replace("__", ", ").replace("_", " "): loss for name, loss in changed.items()}}
    decoded = {"MLA": 1.9, **{f"{name}, {kind}": 1.91 for name in recipe.BASES for kind in (recipe.BOTH, recipe.GAINS)}}
    energy = {"original": [0.5, 0.5], "Hadamard": [0.5, 0.5], "PCA": [0.95, 0.05]}
    aligned = {"original": 2.01, "PCA": 2.0}
    one = {"loss": losses, "decoded": decoded, "aligned": aligned, "energy": energy, "curve": [[5, 2.0]]}
    return [one] * 3


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ""),
        ({"exact__PCA": 2.0001}, "another basis alone changes the loss by at most 1e-5: 1e-04"),
        (
            {"GLA": 2.05},
            "GLA to the original split, at least 5 times (means: 3.57); in thousandths beyond 5 times: -20.000",
        ),
        (
            {"PCA__both": 2.01},
            "PCA to the original split, at most 0.5 times (means: 0.714); in thousandths beyond 0.5 times: 3.000",
        ),
        ({"PCA__both": 2.03, "original__both": 2.07, "Hadamard__both": 2.05, "GLA": 3.0}, "PCA, at most 0.02"),
        ({"original__norm": 2.01}, "the norm's to the softmax's, at most 0.3 times (means: 0.833)"),
        ({"PCA__both": 1.999}, "order: PCA at least MLA, by thousandths: -1.000"),
        ({"Hadamard__both": 2.0}, "order: Hadamard at least PCA, by thousandths: -1.000"),
        ({"Hadamard__both": 2.02}, "order: the original split at least Hadamard, by thousandths: -6.000"),
    ],
    ids=str,
)
def test_marks_are_those_of_the_sheet(changed: dict[str, float], words: str) -> None:
    verdict = recipe.judge(results(**changed))
    missed = [check.text for check in verdict.checks if check.mark != "reached"]
    assert len(missed) == bool(words)
    assert not words or words in missed[0]
    assert verdict.figures["over it in thousandths, original, softmax"] == "12.000 ± 0.000 (3 seeds)"


def test_each_half_of_the_heads_keeps_its_half_as_grouped_latent_attention_has_it() -> None:
    """The trained layer's weights, copied by hand into a layer with two latents."""
    torch.manual_seed(1)
    sizes = {"kv_rank": 32, "rotary_dim": 6, "nope_dim": 5, "value_dim": 5}
    whole = LatentAttention(20, 4, slicing=Slicing(2, (2.0, 2.0), when="always"), **sizes).double()
    grouped = GroupedLatentAttention(20, 4, num_latents=2, kv_rank=16, rotary_dim=6).double()
    state = whole.state_dict()
    by_head = state["kv_b_proj.weight"].view(4, 10, 2, 16)
    own = [by_head[head, :, head // 2] for head in range(4)]  # [N + V, R / 2] of the half that a head reads
    grouped.load_state_dict(
        {**state, "kv_b_proj.weight": torch.cat(own), "kv_a_layernorm.weight": torch.ones(2, 16, dtype=torch.float64)}
    )
    kept = recipe.own_halves({f"x.{name}": tensor for name, tensor in state.items()})
    whole.load_state_dict({name.removeprefix("x."): tensor for name, tensor in kept.items()})
    x = torch.randn(2, 7, 20, dtype=torch.float64)
    torch.testing.assert_close(whole(x), grouped(x), rtol=1e-10, atol=1e-10)


def test_decoded_bytes_are_scored_behind_an_exact_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a model that is not cut is that of a pass over everything."""
    monkeypatch.setattr(recipe, "WINDOWS", 3)
    model = recipe._model({}, seed=3)
    windows = recipe.cut(recipe.text().selection(recipe.LENGTH, limit=3), recipe.LENGTH)[:3]
    with torch.no_grad():
        logits = model(windows[:, :-1])[:, recipe.PROMPT :]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, recipe.PROMPT + 1 :].flatten())
    assert recipe.decoded_loss(model) == pytest.approx(float(expected), abs=1e-5)
    sliced = recipe._model(dict.fromkeys(("layers.0.attn.", "layers.1.attn."), Slicing(2)), model.state_dict())
    assert abs(recipe.decoded_loss(sliced) - float(expected)) > 1e-6
