"""One number of steps a task for all: what the slowest can take in the time."""

from __future__ import annotations

import pytest

from attensor.compare.skills import pace
from attensor.compare.skills.lesson import PILOT_SHARE, RATES
from attensor.compare.skills.pace import FEWEST_STEPS, Paces, common_steps, measure_paces
from attensor.compare.skills.skill import SKILLS
from attensor.compare.subjects import Subject
from tests.compare.skills.toys import TOYS

QUICK = Paces(16, {task.name: 0.001 * (i + 1) for i, task in enumerate(SKILLS)})
SLOW_AT_RECALL = Paces(16, QUICK.seconds_per_step | {"recall": 0.1})


def test_the_slowest_mechanism_decides_for_all_and_only_where_it_is_slow() -> None:
    alone = common_steps([QUICK], seconds=600, jobs=1, mechanisms=2)
    both = common_steps([QUICK, SLOW_AT_RECALL], seconds=600, jobs=1, mechanisms=2)
    assert {name for name in alone if alone[name] != both[name]} == {"recall"}
    assert alone["recall"] == pytest.approx(100 * both["recall"], rel=0.01)


@pytest.mark.parametrize(("jobs", "mechanisms"), [(1, 1), (2, 2), (2, 5), (4, 3)])
def test_all_trainings_of_all_mechanisms_fit_into_the_time(jobs: int, mechanisms: int) -> None:
    steps = common_steps([QUICK] * mechanisms, seconds=600, jobs=jobs, mechanisms=mechanisms)
    trainings = 1 + PILOT_SHARE * (len(RATES) - 1)
    one = sum(steps[name] * seconds * trainings for name, seconds in QUICK.seconds_per_step.items())
    assert 0.7 * 600 < one * mechanisms / min(jobs, mechanisms) < 0.9 * 600


def test_there_is_a_floor() -> None:
    assert set(common_steps([QUICK], seconds=0.01, jobs=1, mechanisms=1).values()) == {FEWEST_STEPS}


def test_every_task_is_measured(monkeypatch) -> None:
    monkeypatch.setattr(pace, "SKILLS", TOYS)
    found = measure_paces(Subject.of("linear"), 16, device="cpu")
    assert set(found.seconds_per_step) == {"easy", "hard"}
    assert all(seconds > 0 for seconds in found.seconds_per_step.values())
