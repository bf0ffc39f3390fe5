"""A lesson: what is solved ends early, what is interrupted goes on without changing a bit, the better rate is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attensor.compare.skills import lesson
from attensor.compare.skills.lesson import Learned, Lesson, training_batch
from attensor.compare.subjects import Subject
from attensor.errors import Diverged, Stopped
from attensor.lab import Reporter
from tests.compare.skills.toys import EASY, HARD


def lesson_of(folder, skill, steps, reporter=None):
    return Lesson(Subject.of("linear"), skill, steps, 16, folder, reporter or Reporter())


def test_what_is_solved_ends_early_and_is_scored_at_all_lengths(tmp_path) -> None:
    learned = lesson_of(tmp_path, EASY, 2000).run()
    assert learned.steps < 2000
    assert learned.at["1x"] > 0.98
    assert set(learned.at) == {"1x", "2x"}
    assert all(score < lesson.ENOUGH for _, _, score in learned.curve[:-1])
    assert learned.curve[-1][2] >= lesson.ENOUGH
    assert learned.steps == learned.curve[-1][0]
    assert not list(tmp_path.iterdir())  # states are gone


class StopsAt(Reporter):
    """Asks to stop at the n-th step it hears of."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def progress(self, **facts) -> None:
        self.count -= 1
        self.stop = self.count <= 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Learned:
    """40 steps without a stop: the pilots take 10 each, the better one goes on."""
    return lesson_of(tmp_path_factory.mktemp("whole"), HARD, 40).run()


@pytest.mark.parametrize("stops", [(7,), (10, 1), (25, 6), (10, 10, 10, 10)], ids=str)
def test_an_interrupted_lesson_goes_on_without_changing_a_bit(tmp_path, whole, stops) -> None:
    for count in stops:
        with pytest.raises(Stopped):
            lesson_of(tmp_path, HARD, 40, StopsAt(count)).run()
    resumed = lesson_of(tmp_path, HARD, 40).run()
    same = [[step, score] for step, _, score in whole.curve]
    assert [[step, score] for step, _, score in resumed.curve] == same
    assert replace(resumed, seconds=0, curve=[]) == replace(whole, seconds=0, curve=[])


def test_the_rate_with_the_lower_loss_on_the_selection_batches_goes_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lesson, "RATES", (1e-6, 1e-2))
    assert lesson_of(tmp_path, EASY, 80).run().learning_rate == 1e-2


def test_a_rate_that_diverges_is_left_out_and_all_of_them_are_a_failure(tmp_path, monkeypatch) -> None:
    train, bad = lesson.train, {1e-2}

    def diverging(model, batch, loss, config, **rest):
        if config.learning_rate in bad:
            raise Diverged(f"not finite at {config.learning_rate}")
        return train(model, batch, loss, config, **rest)

    monkeypatch.setattr(lesson, "train", diverging)
    assert lesson_of(tmp_path, HARD, 20).run().learning_rate == 3e-3
    bad.add(3e-3)
    with pytest.raises(Diverged, match=r"every learning rate: not finite at 0.01; not finite at 0.003"):
        lesson_of(tmp_path, HARD, 20).run()


def test_forms_take_turns_with_as_many_tokens_each() -> None:
    assert [tuple(training_batch(HARD, step, "cpu")[0].shape) for step in range(3)] == [(2, 32), (4, 16), (2, 32)]
