"""What would fail after an hour fails before the first step, by name."""

from __future__ import annotations

import json
import shutil
from datetime import datetime

import pytest

from attensor.compare.config import CompareConfig
from attensor.compare.folder import check_disk, new_run, reopened
from attensor.compare.plan import Plan, make_plan
from attensor.errors import BackendError
from tests.compare.test_subjects import USER_FILE

NOW = datetime(2026, 11, 22, 21, 0, 5)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog.\n" * 400)
    return path


@pytest.fixture
def config(text, tmp_path):
    return CompareConfig(
        data=str(text),
        mechanisms="softmax,gla",
        steps=12,
        length=32,
        batch_size=3,
        out=str(tmp_path / "out"),
        device="cpu",
    )


@pytest.fixture
def run(config, tmp_path):
    return new_run(tmp_path / "out", NOW, make_plan(config, created="now", command="attensor compare"))


def test_the_plan_comes_back_whole(config, run):
    assert run.name == "2026-11-22_21-00-05"
    assert Plan.load(run) == make_plan(config, created="now", command="attensor compare")
    assert reopened(run, CompareConfig(resume=str(run))) == Plan.load(run)


def test_two_runs_in_one_second_get_two_folders(config, run, tmp_path):
    again = new_run(tmp_path / "out", NOW, Plan.load(run))
    assert again.name == "2026-11-22_21-00-05-1"


def test_a_disk_that_is_too_small_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5_000_000, 5_000_000)
    )
    with pytest.raises(OSError, match="needs about 20 MB for checkpoints and results, 5 MB are free"):
        check_disk(tmp_path / "out", 20_000_000)


def test_a_folder_that_cannot_be_written_is_found_out(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"--out .*file/out: cannot be written \(Not a directory\)"):
        check_disk(tmp_path / "file" / "out", 1)


def test_the_probe_leaves_nothing(tmp_path):
    check_disk(tmp_path / "out", 1)
    assert list((tmp_path / "out").iterdir()) == []


def test_contradicting_options_are_named_on_resume(run):
    with pytest.raises(ValueError, match=r"leave out --seeds 3 \(the run has 2\), --length 64 \(the run has 32\)\."):
        reopened(run, CompareConfig(resume=str(run), seeds=3, length=64, steps=12))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not the folder of a run: it has no plan\.json"):
        reopened(tmp_path, CompareConfig(resume=str(tmp_path)))


def test_a_run_of_another_version_is_refused(run):
    saved = json.loads((run / "plan.json").read_text())
    del saved["kernels"]
    (run / "plan.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="is damaged, or of another version of attensor"):
        Plan.load(run)


def test_a_users_file_that_has_changed_is_refused(config, tmp_path):
    file = tmp_path / "my_file.py"
    file.write_text(USER_FILE)
    config = CompareConfig(**{**config.__dict__, "mechanisms": f"softmax,{file}:MyMixer"})
    run = new_run(tmp_path / "out", NOW, make_plan(config, created="now", command=""))
    assert reopened(run, CompareConfig(resume=str(run)))
    file.write_text(USER_FILE + "\n# another\n")
    with pytest.raises(ValueError, match=r"my_file\.py has changed since the run was started"):
        reopened(run, CompareConfig(resume=str(run)))


def test_time_is_shared_in_rounds(config):
    """Three mechanisms, two at a time: two rounds, so that each gets half of the budget."""
    options = {**config.__dict__, "mechanisms": "softmax,gla,linear", "steps": None, "budget": "1m", "jobs": 2}
    plan = make_plan(CompareConfig(**options), created="", command="")
    assert (plan.steps, plan.budget_seconds, plan.share_seconds, plan.jobs) == (None, 60.0, 30.0, 2)


def test_images_are_cut_into_a_grid():
    plan = make_plan(CompareConfig(data="digits", device="cpu"), created="", command="")
    assert (plan.kind, plan.length, plan.patch_size) == ("images", 8, 1)
    plan = make_plan(CompareConfig(data="digits", length=32, device="cpu"), created="", command="")
    assert (plan.length, plan.patch_size) == (32, 4)
    assert {"softmax", "neighborhood", "window-grid", "axial"} <= {s.name for s in plan.subjects}


def test_all_models_are_as_deep_as_the_longest_stack(config):
    options = {**config.__dict__, "mechanisms": "softmax,3*gla+softmax", "size": "tiny"}
    plan = make_plan(CompareConfig(**options), created="", command="")
    assert plan.num_layers == 4
    assert plan.subject("3*gla+softmax").layers == ("gla", "gla", "gla", "softmax")


def test_kernels_that_the_run_had_must_be_there_again(run, monkeypatch):
    assert Plan.load(run).kernels in ("cpp", "torch")
    saved = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps({**saved, "kernels": "cpp"}))
    monkeypatch.setattr("attensor.ops.kernels_form", lambda: "torch")
    with pytest.raises(BackendError, match="attensor doctor --build"):
        reopened(run, CompareConfig(resume=str(run)))
    (run / "plan.json").write_text(json.dumps({**saved, "kernels": "torch"}))
    assert reopened(run, CompareConfig(resume=str(run))).kernels == "torch"


def test_the_plan_is_plain_json(run):
    assert json.loads((run / "plan.json").read_text())["facts"]["kind"] == "text"
