"""Models that correct counts: what they begin with, whose counts they see, and how they write."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from attensor.compare.balance import parameter_count
from attensor.compare.config import CompareConfig
from attensor.compare.counts import COUNTS_FILE, counted, load_counts, stored_counts
from attensor.compare.plan import make_plan
from attensor.compare.tasks import open_task
from attensor.data import open_data
from attensor.files import DamagedFileError
from attensor.models.language import CountedDecoder, generate

LENGTH = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(17):
        (folder / f"{i}.txt").write_text("".join(f"{i} and {j} make {i + j}, so {i * j}\n" for j in range(150)))
    return folder


@pytest.fixture(scope="module")
def plan(folder):
    config = CompareConfig(data=str(folder), mechanisms="softmax,gla", steps=1, length=LENGTH, batch_size=3)
    return make_plan(replace(config, device="cpu"), created="", command="")


@pytest.fixture(scope="module")
def counts(folder):
    return counted(open_data(folder, minimum_bytes=4 * LENGTH + 1))


def built(plan, name="softmax"):
    torch.manual_seed(0)
    return plan.task.build(plan, plan.mixers(plan.subject(name)), 40)


def silent(model):
    """A model that adds nothing to the counts."""
    torch.nn.init.zeros_(model.decoder.norm.weight)
    return model


def test_training_begins_at_the_level_of_the_counts(plan, counts):
    task, model = open_task(plan), built(plan)
    alone = task.score(silent(copy.deepcopy(model)))
    windows = task._data.selection(LENGTH, limit=10**6)
    found = counts.log_probabilities(windows[:, :-1]).flatten(0, 1)
    expect = functional.nll_loss(found, windows[:, 1:].flatten()).item() / math.log(2)
    assert alone == pytest.approx(expect, rel=1e-5)
    assert task.score(model) == pytest.approx(alone, abs=0.05)
    assert task.score(model) != alone


def test_no_training_byte_is_predicted_by_counts_of_its_own_fold(plan, counts):
    task, model = open_task(plan), silent(built(plan))
    starts = task._data.starts(4, seed=1, batch_size=3, length=LENGTH)
    ends = torch.tensor(task._data._train.sizes).cumsum(0)
    fold_of = task._data.folds(5).numbers
    tokens, _ = task.batch(4, 1)
    losses = [
        -counts.log_probabilities(
            tokens[row : row + 1, :-1], int(fold_of[torch.searchsorted(ends, place, right=True)])
        )[0, t, tokens[row, t + 1]]
        for row in range(3)
        for t in range(LENGTH)
        for place in [starts[row] + t + 1]
    ]
    with torch.no_grad():
        found = task.loss(model, task.batch(4, 1))
    torch.testing.assert_close(found, torch.stack(losses).mean())
    everything = -counts.log_probabilities(tokens[:, :-1]).gather(2, tokens[:, 1:, None]).mean()
    assert abs(float(found - everything)) > 1e-4


def test_the_weight_of_the_counts_is_learned_and_nothing_else_is_added(plan):
    task, model = open_task(plan), built(plan)
    task.loss(model, task.batch(0, 0)).backward()
    assert model.scale.grad.abs() > 0
    assert all(parameter.grad is not None for parameter in model.parameters())
    without = replace(plan, counts=False)
    assert parameter_count(model) == parameter_count(built(without)) + 1
    assert model.state_dict().keys() == {"scale", *(f"decoder.{name}" for name in model.decoder.state_dict())}


def test_logits_are_those_of_the_decoder_and_the_weighted_counts(plan, counts):
    model = built(plan)
    torch.nn.init.constant_(model.scale, 0.7)
    tokens = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(1))
    given = counts.log_probabilities(tokens)
    expect = model.decoder(tokens) + 0.7 * given
    torch.testing.assert_close(model(tokens, log_probabilities=given), expect)
    model.counts, model.context = counts.log_probabilities, 4
    torch.testing.assert_close(model(tokens), expect)


def test_without_counts_it_says_what_is_missing(plan):
    with pytest.raises(ValueError, match="log_probabilities"):
        built(plan)(torch.zeros(1, 3, dtype=torch.int64))


@pytest.mark.parametrize("name", ["softmax", "gla"])
def test_written_step_by_step_as_in_one_piece(plan, counts, name):
    """With the decoder's caches, the counts see the end of what has been read."""
    model = built(plan, name).eval()
    torch.nn.init.constant_(model.decoder.norm.weight, 1.0)
    model.counts, model.context = counts.log_probabilities, counts.order - 1
    prompt = torch.tensor([list(b"7 and 3 ma"), list(b"12 and 40 ")])
    with torch.no_grad():
        written = torch.stack(list(generate(model, prompt, 25, temperature=0)), 1)
        whole = torch.cat([prompt, written], 1)
        assert torch.equal(model(whole)[:, len(prompt[0]) - 1 : -1].argmax(-1), written)


def test_counts_are_made_once_and_kept_in_the_run(folder, counts, tmp_path, monkeypatch):
    data = open_data(folder, minimum_bytes=4 * LENGTH + 1)
    first = stored_counts(data, tmp_path)
    monkeypatch.setattr("attensor.compare.counts.counted", None)
    again = stored_counts(data, tmp_path)
    tokens = torch.tensor([list(b"3 and 4 make")])
    for found in (first, again, load_counts(tmp_path)):
        assert torch.equal(found.log_probabilities(tokens, 2), counts.log_probabilities(tokens, 2))


def test_damaged_counts_are_named(tmp_path):
    with pytest.raises(DamagedFileError, match=COUNTS_FILE):
        load_counts(tmp_path)
    (tmp_path / COUNTS_FILE).write_bytes(b"nothing")
    with pytest.raises(DamagedFileError, match="Delete it, and what it held is computed again"):
        load_counts(tmp_path)


def test_images_have_no_counts():
    plan = make_plan(CompareConfig(data="digits", mechanisms="softmax", steps=1), created="", command="")
    assert plan.counts is False


def test_a_decoder_stays_a_decoder_without_counts(plan):
    assert isinstance(built(plan), CountedDecoder)
    task, model = open_task(replace(plan, counts=False)), built(replace(plan, counts=False))
    assert not isinstance(model, CountedDecoder)
    assert task.score(model) > 5
