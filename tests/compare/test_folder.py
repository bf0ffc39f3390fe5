"""What would fail after an hour fails before the first step, by name."""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import datetime

import pytest
import torch
from safetensors.torch import save_file

from attensor import cli
from attensor.compare.artefacts import Balance, Measured, Pace, Pilot, Schedule, SeedRun
from attensor.compare.config import CompareConfig
from attensor.compare.folder import check_disk, new_run, reopened
from attensor.compare.plan import Plan, make_plan
from attensor.errors import BackendError, DataError
from attensor.files import write_json
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
    with pytest.raises(ValueError, match=r"leave out --seeds 5 \(the run has 3\), --length 64 \(the run has 32\)\."):
        reopened(run, CompareConfig(resume=str(run), seeds=5, length=64, steps=12))


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


def test_the_time_is_that_of_all_together(config):
    options = {**config.__dict__, "mechanisms": "softmax,gla,linear", "steps": None, "budget": "1m", "jobs": 2}
    plan = make_plan(CompareConfig(**options), created="", command="")
    assert (plan.steps, plan.budget_seconds, plan.jobs) == (None, 60.0, 2)


def test_another_budget_is_taken_until_the_steps_are_decided(run):
    """And then no more: half of the mechanisms may have been trained."""
    asked = CompareConfig(resume=str(run), budget="5m")
    plan = reopened(run, asked)
    assert (plan.steps, plan.budget_seconds) == (None, 300.0)
    assert Plan.load(run) == plan
    assert reopened(run, CompareConfig(resume=str(run))) == plan
    Schedule(12, 3, 60.0).save(run / "pace.json")
    with pytest.raises(ValueError, match=r"leave out --budget 7m \(the run has 5m\)"):
        reopened(run, CompareConfig(resume=str(run), budget="7m"))
    assert reopened(run, asked) == plan


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


ARTEFACTS = {
    "balance.json": Balance(170, 100, 101),
    "calibration.json": Pace(0.5, 12.0, 1.25),
    "pilot-0.json": Pilot(0.01, 10, 7.5),
    "seed-0.json": SeedRun(
        seed=0,
        learning_rate=0.01,
        steps=1,
        seconds_per_step=0.5,
        machine_load=1.0,
        tokens_per_second=5.0,
        curve=[{"step": 1, "tokens": 9, "score": 7.5}],
        final={"1x": 7.5},
        units=[7.5],
        checkpoint="gla/seed-0.safetensors",
    ),
    "cost.json": Measured([], finished=True),
}


@pytest.fixture
def half_done(run):
    """A run that has a file of each kind."""
    (run / "gla").mkdir()
    for name, artefact in ARTEFACTS.items():
        artefact.save(run / "gla" / name)
    write_json(run / "gla/laws.json", {"kept": True})
    write_json(run / "gla/failed-train.json", {"reason": "none"})
    Schedule(12, 3, 60.0).save(run / "pace.json")
    save_file({"a": torch.ones(3)}, run / "gla/seed-1.state.safetensors")
    return run


def test_a_run_with_all_its_files_goes_on(half_done):
    assert reopened(half_done, CompareConfig(resume=str(half_done))) == Plan.load(half_done)


@pytest.mark.parametrize("content", ["", '{"tr', "null", "[5]", '"text"', "\udcff", '{"a": 1}'], ids=ascii)
@pytest.mark.parametrize("name", [*ARTEFACTS, "laws.json", "failed-train.json", "seed-1.state.safetensors"])
def test_a_damaged_file_is_named_with_what_to_do(name, content, half_done, capsys):
    if content == '{"a": 1}' and name not in ARTEFACTS:
        return
    (half_done / "gla" / name).write_bytes(content.encode(errors="surrogateescape"))
    assert cli.main(["compare", "--resume", str(half_done)]) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"attensor: .*gla/{name}: is damaged \(.*\)\. Delete the folder .*gla, and its [^\n]*\n", err)
    assert out == ""


@pytest.mark.parametrize("content", ["", '{"tr', "null", "[5]", "{}", "\udcff", '{"facts": 3}'], ids=ascii)
@pytest.mark.parametrize("name", ["plan.json", "pace.json"])
def test_a_run_whose_plan_is_damaged_is_refused(name, content, half_done, capsys):
    (half_done / name).write_bytes(content.encode(errors="surrogateescape"))
    assert cli.main(["compare", "--resume", str(half_done)]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"attensor: [^\n]*\n", err)
    assert str(half_done) in err


@pytest.mark.parametrize("name", ["../../x", "", "..", "/tmp/x"])
def test_a_plan_that_writes_elsewhere_is_refused(name, half_done):
    saved = json.loads((half_done / "plan.json").read_text())
    saved["subjects"][0]["name"] = name
    (half_done / "plan.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="is damaged, or of another version"):
        Plan.load(half_done)


@pytest.mark.parametrize("change", ["same size", "gone"])
def test_a_run_on_other_data_is_refused(change, run, text):
    if change == "gone":
        text.unlink()
    else:
        text.write_bytes(text.read_bytes().swapcase())
    with pytest.raises(
        DataError, match=r"text\.txt.*(other contents in files as large\. Start a new run|does not exist)"
    ):
        reopened(run, CompareConfig(resume=str(run)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_that_needs_a_gpu_is_refused_without(run):
    saved = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps({**saved, "device": "cuda"}))
    with pytest.raises(ValueError, match="sees no GPU"):
        reopened(run, CompareConfig(resume=str(run)))


ARGUMENTS = {
    "nobody": (["--data", "~nosuchuser/x"], "--data ~nosuchuser/x: there is no user nosuchuser"),
    "empty": (["--data", ""], "--data is empty"),
    "address": (["--data", "https://a.b/c"], "--data https://a.b/c: is an address"),
    "file address": (["--data", "file:///etc/passwd"], "is an address"),
    "loop": (["--data", "loop"], "loop' cannot be read: Too many levels of symbolic links"),
    "pipe": (["--data", "pipe"], "pipe' is not a regular file"),
    "escapes": (["--data", "\x1b[31mred"], r"\x1b[31mred' does not exist"),
    "no out": (["--out", ""], "--out is empty"),
    "out of nobody": (["--out", "~nosuchuser/x"], "--out ~nosuchuser/x: there is no user nosuchuser"),
    "file as out": (["--out", "text.txt"], "--out text.txt: cannot be written"),
    "mixer of nobody": (["--mechanisms", "~nosuchuser/my.py:A"], "there is no user nosuchuser"),
    "layers": (["--mechanisms", "1000000000*linear"], "has more than 1000 layers"),
    "no run": (["--resume", ""], "--resume is empty"),
    "file as run": (["--resume", "text.txt"], "text.txt: is not the folder of a run"),
    "endless": (["--budget", "9" * 400 + "h"], "of a year at most"),
    "long": (["--budget", "99999999999h"], "of a year at most"),
    "digits": (["--budget", "\u0663m"], "write a time such as"),
}


@pytest.mark.parametrize(("options", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_an_impossible_argument_is_one_line(options, message, text, tmp_path, monkeypatch, capsys):
    """And nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    given = {"--data": "text.txt", "--mechanisms": "linear", "--length": "16"} if "--resume" not in options else {}
    given |= dict([options])
    assert cli.main(["compare", *(word for pair in given.items() for word in pair)]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert message in err
    assert out == ""
    assert sorted(tmp_path.iterdir()) == before
