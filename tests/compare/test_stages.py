"""The training of one mechanism: pilots are beginnings of runs, and an end at any moment changes no number."""

from __future__ import annotations

import json
import random
import shutil
from datetime import datetime

import pytest

from attensor.compare.artefacts import Pilot, Schedule, SeedRun
from attensor.compare.config import CompareConfig
from attensor.compare.folder import new_run
from attensor.compare.plan import make_plan
from attensor.compare.results import collect
from attensor.compare.stages import Training
from attensor.lab import Reporter
from attensor.train import Stopped

STEPS, PILOT = 9, 4
TIMES = {"seconds_per_step", "machine_load", "tokens_per_second", "seconds"}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    text = tmp_path_factory.mktemp("data") / "text.txt"
    rng = random.Random(1)
    text.write_text("".join(f"{rng.choice(['one', 'two', 'three'])} {i % 17}\n" for i in range(2000)))
    config = CompareConfig(
        data=str(text),
        mechanisms="linear,softmax",
        steps=STEPS,
        seeds=2,
        length=16,
        batch_size=3,
        device="cpu",
        counts=False,
        learning_rates=(1e-3, 3e-3),
    )
    return make_plan(config, created="now", command="attensor compare")


class Stops(Reporter):
    """Asks to stop when it has heard of so many steps and stages."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def event(self, **facts):
        self.left -= 1
        self.stop = self.left <= 0

    def progress(self, **facts):
        self.event(**facts)


def begun(plan, folder):
    """The folder of a run whose steps are decided."""
    run = new_run(folder, datetime(2026, 11, 22), plan)
    Schedule(STEPS, PILOT, 1.0).save(run / "pace.json")
    (run / "linear").mkdir()
    return run


def trained(plan, run, reporter=None):
    Training(plan, plan.subject("linear"), run / "linear", reporter or Reporter()).run()


def numbers(run):
    """All artefacts of the mechanism, without the times."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items() if key not in TIMES}
        return [plain(part) for part in value] if isinstance(value, list) else value

    return {path.name: plain(json.loads(path.read_text())) for path in sorted((run / "linear").glob("*.json"))}


@pytest.fixture(scope="module")
def whole(plan, tmp_path_factory):
    run = begun(plan, tmp_path_factory.mktemp("whole"))
    trained(plan, run)
    return run


def test_the_grid_grows_and_the_best_rate_trains_all_seeds(plan, whole):
    pilots = [Pilot.load(path) for path in (whole / "linear").glob("pilot-*.json")]
    assert len(pilots) > 2  # so short a run likes large rates
    best = min(pilots, key=lambda pilot: pilot.score)
    runs = [SeedRun.load(whole / "linear" / f"seed-{seed}.json") for seed in plan.seeds]
    assert {run.learning_rate for run in runs} == {best.learning_rate}
    assert {run.steps for run in runs} == {STEPS}
    assert {pilot.steps for pilot in pilots} == {PILOT}


def test_the_best_pilot_is_the_beginning_of_the_first_seed(whole):
    pilots = [Pilot.load(path) for path in (whole / "linear").glob("pilot-*.json")]
    curve = SeedRun.load(whole / "linear/seed-0.json").curve
    at_pilot = next(point["score"] for point in curve if point["step"] == PILOT)
    assert at_pilot == min(pilot.score for pilot in pilots)


def test_a_pilot_that_is_continued_is_the_run_from_its_start(plan, whole, tmp_path):
    """The state of the best pilot saves its steps, and changes nothing."""
    run = begun(plan, tmp_path)
    for path in (whole / "linear").glob("pilot-*.json"):
        shutil.copy(path, run / "linear")
    trained(plan, run)
    assert numbers(run) == numbers(whole)


@pytest.mark.parametrize("after", [1, PILOT, PILOT + 1, 2 * PILOT + 1, 5 * PILOT + 2, 5 * PILOT + 8])
def test_a_training_that_is_stopped_goes_on_to_the_same_numbers(plan, whole, tmp_path, after):
    run = begun(plan, tmp_path)
    stops = 0
    while True:
        try:
            trained(plan, run, Stops(after))
            break
        except Stopped:
            stops += 1
            assert stops < 100
    assert stops > 0
    assert numbers(run) == numbers(whole)
    assert not list(run.glob("linear/*.state.safetensors"))


def test_states_that_a_kill_has_taken_are_trained_again(plan, whole, tmp_path):
    """Whatever moment it was: the artefacts that are there stay, the others come out the same."""
    run = begun(plan, tmp_path)
    for _ in range(40):
        try:
            trained(plan, run, Stops(5))
        except Stopped:
            for path in run.glob("linear/*.state.safetensors"):
                if path.name.startswith("pilot"):
                    path.unlink()
    assert numbers(run) == numbers(whole)


def test_a_mechanism_is_scored_or_unfinished_and_never_both(plan, whole, tmp_path):
    """Trained, and not measured yet: its score stands, and the run is not finished."""
    results = collect(whole, plan)
    rows = {row["name"]: row for row in results["mechanisms"]}
    assert rows["linear"]["status"] == "ok"
    assert rows["linear"]["score"]["mean"] < 8
    assert rows["linear"]["missing"]["cost"] == "not measured yet"
    assert rows["softmax"]["status"] == "unfinished"
    assert rows["softmax"]["score"] is None
    assert rows["softmax"]["missing"]["score"] == rows["softmax"]["reason"]
    assert not results["finished"]
    assert results["answer"][-1] == f"Continue with: attensor compare --resume {whole}"
    run = begun(plan, tmp_path)
    shutil.copytree(whole / "linear", run / "linear", dirs_exist_ok=True)
    (run / "linear/seed-1.json").unlink()
    row = next(row for row in collect(run, plan)["mechanisms"] if row["name"] == "linear")
    assert (row["status"], row["score"]) == ("unfinished", None)


def test_every_null_has_its_reason(plan, whole):
    for row in collect(whole, plan)["mechanisms"]:
        nulls = {name for name, value in row.items() if value is None} - {"reason", "cost_stopped", "decode_stopped"}
        assert nulls <= row["missing"].keys()
        assert all(row["missing"].values())
