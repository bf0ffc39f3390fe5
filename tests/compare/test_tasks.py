"""What is scored: the same held-out bytes at every length, nothing of the training, and every image once."""

from __future__ import annotations

import lzma
import math
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from attensor.compare.config import CompareConfig
from attensor.compare.plan import make_plan
from attensor.compare.tasks import open_task
from attensor.errors import DataError

LENGTH = 32


@pytest.fixture(scope="module")
def text_plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for i in range(11):
        (folder / f"{i}.txt").write_text("".join(f"{i} times {j} is {i * j}\n" for j in range(400)))
    config = CompareConfig(
        data=str(folder), mechanisms="softmax", steps=1, length=LENGTH, batch_size=3, device="cpu", counts=False
    )
    return make_plan(config, created="", command="")


class Recorder(nn.Module):
    """Gives every byte the same chance, and keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, tokens):
        self.seen.append(tokens)
        return torch.zeros(*tokens.shape, 256)


def test_a_guess_costs_eight_bits_at_every_length(text_plan):
    scores, units = open_task(text_plan).final(Recorder())
    assert units == pytest.approx([8.0] * len(text_plan.units["weights"]))
    assert scores == {factor: pytest.approx(8.0) for factor in ("1x", "2x", "4x")}


def test_every_length_reads_the_same_bytes(text_plan):
    """So that a difference between 1x and 4x is the context's, not the text's."""
    task, model = open_task(text_plan), Recorder()
    task.final(model)
    by_length = {n: torch.cat([t for t in model.seen if t.shape[1] == n]) for n in (LENGTH, 2 * LENGTH, 4 * LENGTH)}
    streams = [tokens.flatten().tolist() for tokens in by_length.values()]
    assert streams[0] == streams[1] == streams[2]
    assert len(streams[0]) > 1000


def test_the_score_is_the_mean_over_all_windows(text_plan):
    """A model that knows one byte: its score follows from how often that byte occurs."""
    task = open_task(text_plan)

    class Knows(nn.Module):
        def forward(self, tokens):
            logits = torch.zeros(*tokens.shape, 256)
            logits[..., ord("1")] = math.log(255)  # probability one half
            return logits

    windows, of_windows = task._data.test(4 * LENGTH, limit=512)
    share = (windows[:, 1:] == ord("1")).double().mean(1)
    expected = share * 1 + (1 - share) * math.log2(510)
    scores, units = task.final(Knows())
    assert scores["1x"] == pytest.approx(expected.mean().item(), rel=1e-5)
    assert units == pytest.approx([expected[of_windows == i].mean().item() for i in range(len(units))], rel=1e-5)


def test_the_units_make_up_the_score(text_plan):
    """Weighted by what each unit counts; a difference between two models can so be drawn again from its units."""
    task = open_task(text_plan)
    torch.manual_seed(5)
    model = nn.Sequential(nn.Embedding(256, 7), nn.Linear(7, 256))
    scores, units = task.final(model)
    weights = text_plan.units["weights"]
    assert sum(weights) == pytest.approx(1.0)
    assert sum(w * u for w, u in zip(weights, units, strict=True)) == pytest.approx(scores["1x"], rel=1e-6)
    assert len(set(units)) == len(units) > 1


def test_nothing_that_chooses_reads_the_test(text_plan):
    """The windows of the curve and of the training are no windows of the final score."""
    task, curve, final = open_task(text_plan), Recorder(), Recorder()
    task.score(curve)
    task.final(final)
    seen, tested = (
        {bytes(row) for tokens in model.seen if tokens.shape[1] == LENGTH for row in tokens.tolist()}
        for model in (curve, final)
    )
    trained = {bytes(row[:-1]) for step in range(50) for row in task.batch(step, 0)[0].tolist()}
    assert min(len(seen), len(tested), len(trained)) > 100
    assert not tested & (seen | trained)


@pytest.mark.parametrize("form", ["noise", "compressed"])
def test_noise_is_refused(tmp_path, form):
    """Whatever its first bytes look like, and text of many letters is none."""
    rng = random.Random(1)
    path = tmp_path / "some.txt"
    noise = bytes(rng.choices(range(1, 256), k=90_000))
    path.write_bytes(b"# text, one would say\n" * 200 + (noise if form == "noise" else lzma.compress(noise)))
    config = CompareConfig(data=str(path), mechanisms="softmax", steps=1, length=LENGTH, device="cpu")
    with pytest.raises(DataError, match=r"'some.txt' looks like noise: zlib makes [78]\.\d\d bits .* unpack it first"):
        make_plan(config, created="", command="")
    path.write_text("".join(chr(rng.choice([*range(97, 123), *range(0x4E00, 0x5E00)])) for _ in range(30_000)))
    assert make_plan(config, created="", command="").kind == "text"


def test_a_batch_is_a_function_of_step_and_seed(text_plan):
    task = open_task(text_plan)
    assert all(map(torch.equal, task.batch(5, 1), open_task(text_plan).batch(5, 1)))
    assert not torch.equal(task.batch(5, 1)[0], task.batch(5, 2)[0])
    assert task.batch(5, 1)[0].shape == (3, LENGTH + 1)


def test_data_that_has_changed_is_refused(text_plan):
    changed = replace(text_plan, facts={**text_plan.facts, "train_bytes": 7})
    with pytest.raises(DataError, match=r"train_bytes 7 is now .* Start a new run"):
        open_task(changed)


def test_other_contents_of_the_same_size_are_refused_and_other_notes_are_not(text_plan):
    """A run goes on when files that it does not use come or go."""
    open_task(replace(text_plan, facts={**text_plan.facts, "notes": ["1 file left out: PDF (a.pdf)."]}))
    changed = replace(text_plan, facts={**text_plan.facts, "fingerprint": "0"})
    with pytest.raises(DataError, match="has changed since the run was started: other contents in files as large"):
        open_task(changed)


def test_accuracy_counts_every_image_once():
    plan = make_plan(CompareConfig(data="digits", steps=1, batch_size=5, device="cpu"), created="", command="")
    task = open_task(plan)

    class Eight(nn.Module):
        count = 0

        def forward(self, images):
            self.count += len(images)
            return nn.functional.one_hot(torch.full((len(images),), 8), 10).float()

    model = Eight()
    scores, units = task.final(model)
    assert model.count == plan.facts["test_images"]
    assert scores == {"1x": pytest.approx(0.1, abs=0.02), "2x": None, "4x": None}
    assert set(units) == {0.0, 1.0}
    assert sum(w * u for w, u in zip(plan.units["weights"], units, strict=True)) == pytest.approx(scores["1x"])
    assert task.score(model) == pytest.approx(0.1, abs=0.03)
    assert model.count == plan.facts["test_images"] + plan.facts["selection_images"]
