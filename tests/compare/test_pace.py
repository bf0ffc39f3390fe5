"""One number of steps for all: the time of a step is what passes for a mechanism alone, the budget is for all."""

from __future__ import annotations

import itertools
import time
from datetime import datetime

import pytest

from attensor.compare import stages
from attensor.compare.artefacts import Pace, Schedule
from attensor.compare.config import CompareConfig
from attensor.compare.folder import new_run
from attensor.compare.pace import decide, expected_seconds, makespan, paces, pilot_steps
from attensor.compare.plan import make_plan
from attensor.compare.stages import Calibration, curve_steps
from attensor.lab import Reporter
from attensor.train import train

NAMES = ("softmax", "gla", "linear")


def planned(folder, **more):
    text = folder / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 400)
    options = {"budget": "10m", "length": 32, "batch_size": 3, "device": "cpu", "jobs": 2, **more}
    return make_plan(CompareConfig(data=str(text), mechanisms=",".join(NAMES), **options), created="", command="")


@pytest.fixture
def calibration(tmp_path):
    plan = planned(tmp_path, learning_rates=(0.5, 0.25))
    folder = tmp_path / "softmax"
    folder.mkdir()
    return Calibration(plan, plan.subjects[0], folder, Reporter())


def run_of(plan, folder, seconds, load=1.0):
    """The folder of a run in which each mechanism has been calibrated."""
    run = new_run(folder / "out", datetime(2026, 11, 22), plan)
    for subject, of_one in zip(plan.subjects, seconds, strict=True):
        subject.folder(run).mkdir()
        Pace(of_one, 40 * of_one, load).save(subject.folder(run) / "calibration.json")
    return run


def test_sleep_counts():
    clock = stages._Clock("cpu")
    time.sleep(0.05)
    assert clock.own_seconds() >= 0.045  # a sleep is never shorter, but for the waiting that does not count


def test_a_wait_for_the_processor_does_not_count_but_as_load(monkeypatch):
    queued = iter([3.0, 7.0, 7.0])
    monkeypatch.setattr(stages, "queued_seconds", lambda: next(queued))
    monkeypatch.setattr(time, "perf_counter", iter([100.0, 106.0, 106.0, 106.0]).__next__)
    clock = stages._Clock("cpu")
    assert clock.own_seconds() == 2.0
    assert clock.load() == 3.0


def test_the_queue_of_the_system_is_read():
    assert stages.queued_seconds() >= 0.0


def test_the_pace_is_measured_with_the_rate_that_is_least_likely_to_diverge(calibration, monkeypatch):
    seen = []

    def watched(*arguments, **options):
        seen.append(arguments[3].learning_rate)
        return train(*arguments, **options)

    monkeypatch.setattr(stages, "train", watched)
    calibration.run()
    assert seen == [0.25]
    pace = Pace.load(calibration.folder / "calibration.json")
    assert min(pace.seconds_per_step, pace.evaluation_seconds) > 0
    assert pace.machine_load >= 1


@pytest.mark.parametrize("load", [1.0, 1.75])
def test_the_steps_are_the_most_that_the_budget_allows(tmp_path, load):
    """By hand, two at a time: the dearest alone against the two others; a busy machine makes them fewer, for all."""
    plan = planned(tmp_path)
    schedule = decide(run_of(plan, tmp_path, (0.3, 0.1, 0.125), load), plan)

    def seconds(of_step, steps):
        return load * of_step * (3 * steps + 3 * pilot_steps(plan, steps) + 3.75 * 40)

    assert seconds(0.3, schedule.steps) <= 600 < seconds(0.3, schedule.steps + 1)
    assert schedule.expected_seconds == pytest.approx(seconds(0.3, schedule.steps))
    assert schedule.pilot_steps == -(-schedule.steps // 4) > 40


def test_work_that_can_be_shared_is_shared(tmp_path):
    plan = planned(tmp_path)
    run = run_of(plan, tmp_path, (0.2, 0.1, 0.125))
    of_each = sorted(expected_seconds(plan, paces(run, plan.subjects), 1000).values())
    assert makespan(plan, paces(run, plan.subjects), 1000) == pytest.approx(max(of_each[2], of_each[0] + of_each[1]))


def test_what_has_been_decided_stays(tmp_path):
    plan = planned(tmp_path)
    run = run_of(plan, tmp_path, (0.3, 0.1, 0.125))
    first = decide(run, plan)
    Pace(9.0, 0.0, 5.0).save(plan.subjects[1].folder(run) / "calibration.json")
    assert decide(run, plan) == first == Schedule.load(run / "pace.json")


def test_a_given_number_of_steps_is_taken(tmp_path):
    plan = planned(tmp_path, budget=None, steps=7)
    schedule = decide(run_of(plan, tmp_path, (0.3, 0.1, 0.125)), plan)
    assert (schedule.steps, schedule.pilot_steps) == (7, 6)


@pytest.mark.parametrize(("steps", "pilot"), [(1, 1), (2, 1), (30, 29), (50, 40), (160, 40), (161, 41), (4000, 1000)])
def test_pilots_go_beyond_the_warm_up_and_end_before_the_run(tmp_path, steps, pilot):
    assert pilot_steps(planned(tmp_path), steps) == pilot


def test_a_budget_that_is_too_small_is_refused_with_one_that_is_enough(tmp_path):
    plan = planned(tmp_path, budget="5s")
    run = run_of(plan, tmp_path, (0.3, 0.1, 0.125))
    with pytest.raises(ValueError, match=r"--budget 5s: is enough for 0 steps .* attensor compare --resume") as error:
        decide(run, plan)
    assert not (run / "pace.json").exists()
    enough = str(error.value).rsplit(" ", 1)[1]
    larger = planned(tmp_path, budget=enough)
    assert 50 <= decide(run, larger).steps <= 75


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000, 123_456])
def test_curves_are_denser_at_their_beginning_and_have_the_pilots_point(steps):
    pilot = max(1, -(-steps // 4))
    points = curve_steps(Schedule(steps, pilot, 0.0))
    assert list(points) == sorted(set(points))
    assert points[-1] == steps
    assert pilot in points
    assert len(points) <= 13
    if steps >= 1000:
        assert len(points) >= 12
        ratios = [b / a for a, b in itertools.pairwise(p for p in points if p != pilot)]
        assert max(ratios) < 1.5
