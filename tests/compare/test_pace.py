"""The time of a step is what passes for a mechanism alone: its sleep counts, a wait for the processor does not."""

from __future__ import annotations

import time

import pytest

from attensor.compare import stages
from attensor.compare.config import CompareConfig
from attensor.compare.plan import make_plan
from attensor.compare.stages import Training
from attensor.lab import Reporter


@pytest.fixture
def training(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 400)
    options = {"budget": "10m", "length": 32, "batch_size": 3, "device": "cpu", "learning_rates": (0.5, 0.25)}
    plan = make_plan(CompareConfig(data=str(text), mechanisms="softmax,gla", **options), created="", command="")
    folder = tmp_path / "softmax"
    folder.mkdir()
    return Training(plan, plan.subjects[0], folder, Reporter())


def test_sleep_counts(training):
    before = training._clock()
    time.sleep(0.05)
    assert training._clock() - before >= 0.045  # a sleep is never shorter, but for the waiting that does not count


def test_a_wait_for_the_processor_does_not_count(training, monkeypatch):
    queued = iter([3.0, 7.0])
    monkeypatch.setattr(stages, "_queued_seconds", lambda: next(queued))
    monkeypatch.setattr(time, "perf_counter", iter([100.0, 106.0]).__next__)
    assert -training._clock() + training._clock() == 2.0


def test_the_load_is_that_of_the_machine_and_not_of_a_mechanism_that_sleeps(training, monkeypatch):
    """A sleeper must not shorten the runs of those beside it; a busy machine shortens those of all."""
    now, queued = [0.0], [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(stages, "_queued_seconds", lambda: queued[0])

    def step():
        now[0] += 3.0  # of which 2 seconds asleep or at work, and 1 second in the queue
        queued[0] += 1.0
        return 2.0

    monkeypatch.setattr(training, "_seconds_per_step", step)
    pace = training._calibrate()
    assert (training.folder.parent / "load.json").read_text().strip() == "1.5"
    # the share over 2 seeds and 2 pilots of a fifth, 2 s a step and half as much again
    assert pace.steps == int(training.plan.share_seconds / 3.0 / 2.4)


def test_the_pace_is_measured_with_the_rate_that_is_least_likely_to_diverge(training, monkeypatch):
    seen = []

    def train(model, batch, loss, config, *, evaluate, on_step):
        seen.append(config.learning_rate)
        for _ in range(24):
            on_step(None)

    monkeypatch.setattr(stages, "train", train)
    monkeypatch.setattr(training, "_model", lambda seed: None)
    training.task = stages.open_task(training.plan)
    training._seconds_per_step()
    assert seen == [0.25]


def test_the_queue_of_the_system_is_read():
    assert stages._queued_seconds() >= 0.0
