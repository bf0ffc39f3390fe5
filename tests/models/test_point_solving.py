"""`attensor train points` and `attensor solve`: models, answers beside solvers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from attensor import cli
from attensor.data.points import TASKS, draw_instances
from attensor.models.pointing import Beams, PointerNetwork, Seq2SeqBaselines
from attensor.models.pointing.saved import load_pointing, save_pointing, shipped_model
from attensor.models.pointing.solving import solve_points
from attensor.train.loop import run_training
from attensor.train.points import PointTraining, scores_of
from attensor.train.setups import PointSetup

SMALL = ["--sizes", "5,6", "--steps", "6", "--instances", "30", "--held-out", "8", "--hidden-size", "8"]


def trained(out: Path, task: str = "hull", *more: str) -> int:
    return cli.main(["train", "points", "--task", task, "--out", str(out), *SMALL, *more])


@pytest.mark.parametrize("task", TASKS)
def test_a_model_is_trained_kept_and_asked(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = {"hull": "attention", "tsp": "pointer", "delaunay": "plain"}[task]
    assert trained(tmp_path / "run", task, "--model", kind) == 0
    assert "6/6" in capsys.readouterr().out.replace(" ", "")
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["task"] == task
    assert set(kept["held_out"]) == {"5", "6"}
    asked = ["--task", task, *SMALL, *(["--model", kind] if kind != "pointer" else [])]
    assert kept["command"].startswith("attensor train points --task")
    assert sorted(kept["command"].split()[3:]) == sorted(asked)
    (tmp_path / "points.csv").write_text("0,0\n1,0.1\n0.2,1\n0.4,0.3\n0.9,0.8\n0.9,0.8\n")
    command = ["solve", task, str(tmp_path / "points.csv"), "--model", str(tmp_path / "run")]
    for suffix in ("html", "csv"):
        assert cli.main([*command, "--out", str(tmp_path / f"answer.{suffix}")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 of 6 points are repetitions" in shown
    assert "pointer network" in shown
    page = (tmp_path / "answer.html").read_text()
    assert page.count("<circle") == 2 * 5
    assert page.count("<svg") == 2
    rows = (tmp_path / "answer.csv").read_text().split()
    assert rows[0] == "place,point"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (["--sizes", "2,5"], "must be from 3 to"),
        (["--task", "tsp", "--sizes", "13"], "must be from 3 to 12"),
        (["--learning-rate", "0"], "must be above 0"),
    ],
)
def test_impossible_trainings_are_refused(
    more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained(tmp_path / "run", "hull", *more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("0,0\n1,1\n2,2\n5,5\n", [], "all points lie on one line"),
        ("0,0\n1,1\n1,1\n", [], "2 different points; at least 3"),
        ("0,0\n1,1\nnan,1\n", [], "line 3: nan is not finite"),
        ("1e308,0\n-1e308,0\n0,1\n", [], "between 1e-300 and 1.8e308 apart, got inf; give them in other units"),
        ("1e-310,0\n0,1e-310\n0,0\n", [], "apart, got 1e-310"),
        ("0,0\n1,1\n2,0\n", ["--out", "plot.png"], "must end in .html or .csv"),
        ("0,0\n1,1\n2,0\n", ["--out", "no/such/plot.html"], "there is no folder"),
        ("0,0\n1,1\n2,0\n", ["--width", "0"], "--width must be at least 1"),
        ("0,0\n1,1\n2,0\n", ["--model", "no-model"], "no model at 'no-model'"),
    ],
)
def test_bad_questions_are_one_line(
    text: str, options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "points.csv").write_text(text)
    assert cli.main(["solve", "hull", str(tmp_path / "points.csv"), *options]) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert (out, err.count("\n")) == ("", 1)


def test_a_model_of_another_task_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "points.csv").write_text("0,0\n1,1\n2,0\n")
    command = ["solve", "tsp", str(tmp_path / "points.csv"), "--model", str(shipped_model("hull"))]
    assert cli.main(command) == 2
    assert "was trained for hull" in capsys.readouterr().err


def test_saved_models_are_the_same(tmp_path: Path) -> None:
    inputs, targets = torch.rand(2, 5, 2), torch.tensor([[1, 2, 0], [3, 0, -100]])
    for model in (
        PointerNetwork(8, end_starts_encoder=False, logit_clip=3.0),
        Seq2SeqBaselines(8, 7, attention=True),
        Seq2SeqBaselines(8, 7),
    ):
        save_pointing(model, tmp_path / "model.safetensors", {"task": "hull", "sizes": [5]})
        other, facts = load_pointing(tmp_path)
        assert torch.equal(other(inputs, targets), model(inputs, targets))
        assert facts == {"task": "hull", "sizes": [5]}
    (tmp_path / "other.safetensors").write_bytes(b"1234")
    with pytest.raises(ValueError, match="is no pointer network of attensor"):
        load_pointing(tmp_path / "other.safetensors")


@pytest.mark.parametrize(("task", "size"), [("hull", 500), ("tsp", 60), ("tsp", 12), ("hull", 3), ("delaunay", 3)])
def test_solvers_answer_any_number_of_points_in_any_units(task, size: int) -> None:
    points = np.random.default_rng(size).random((size, 2)) * 1e6 - 5e8
    model = PointerNetwork(8, init_range=1.0).eval()
    found = solve_points(task, points, model, trained=[5, 6], width=1)
    assert ("more" if size > 6 else "fewer") in found.notes[0]
    if task == "tsp":
        assert sorted(found.best) == sorted(found.found) == list(range(1, size + 1))
        assert ("exact" in found.solver) == (size <= 12)
    elif size == 3:
        assert sorted(found.best) == [1, 2, 3]
        assert "the right one" in found.verdict


def test_triangles_are_read_from_left_to_right_and_told_by_the_users_places() -> None:
    points = np.array([[3, 0], [0, 0.1], [2, 1.3], [1, 1], [0.5, 2]])
    order = [1, 4, 3, 2, 0]
    model, _ = load_pointing(shipped_model("delaunay"))
    found, ordered = (solve_points("delaunay", one, model) for one in (points, points[order]))
    assert found.rows == [place + 1 for place in order]
    assert ordered.rows == [1, 2, 3, 4, 5]
    assert (found.points == ordered.points).all()
    assert (found.found, found.best) == (ordered.found, ordered.best)


def test_points_on_a_grid_have_one_of_several_triangulations() -> None:
    grid = np.array([[i, j] for i in range(4) for j in range(4)], dtype=float)
    found = solve_points("delaunay", grid, PointerNetwork(8).eval(), width=1)
    assert len(found.best) == 3 * 18
    assert "there may be several triangulations" in found.notes[0]
    uneven = grid + np.random.default_rng(0).random(grid.shape) / 10
    assert not solve_points("delaunay", uneven, PointerNetwork(8).eval(), width=1).notes


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e200])
def test_answers_do_not_depend_on_the_unit(unit: float) -> None:
    points = np.array([[0, 0], [2, 0], [2, 1], [0, 1], [1, 0]]) * unit
    _, right, measures, verdict = _solved("hull", points, [1, 5, 2, 3, 4, 1, 0])
    assert sorted(right) == [1, 2, 3, 4]
    assert measures["share of the hull's area"] == ("100.0%", "100 %")
    assert verdict == "The model's hull is the right one; it counts points on its edges as corners."
    _, _, measures, verdict = _solved("tsp", points, [1, 5, 2, 3, 4, 1, 0])
    assert measures["length"] == (f"{6 * unit:.6g}",) * 2
    assert verdict == "The model's tour is the shortest."


def _solved(task, points, answer: list[int]):
    """As if a model had given this answer."""

    class Model(PointerNetwork):
        def decode(self, *_, **__):
            return Beams(torch.tensor([[answer]]), torch.zeros(1, 1))

    found = solve_points(task, points, Model(8))
    return found.found, found.best, found.measures, found.verdict


def test_a_small_model_learns() -> None:
    """500 steps on 16 hulls: half of the loss is gone; what whole trainings reach is asked of the shipped models."""
    sizes = {"sizes": (5,), "hidden_size": 64, "instances": 16, "batch_size": 16, "held_out": 8}
    training = PointTraining(PointSetup(task="hull", steps=500, **sizes))
    before = training.loss(training.model, training.batch(0)).item()
    run_training(training, training.config)
    assert training.loss(training.model, training.batch(0)).item() < 0.6 * before


@pytest.mark.parametrize(
    ("task", "size", "name", "least"),
    [("hull", 10, "accuracy", 0.55), ("tsp", 8, "valid", 1.0), ("delaunay", 5, "coverage", 0.85)],
)
def test_models_that_come_along_are_trained(task, size: int, name: str, least: float) -> None:
    assert shipped_model(task).stat().st_size < 2_000_000
    model, facts = load_pointing(shipped_model(task))
    assert facts["task"] == task
    scores = scores_of(model, draw_instances(task, 200, size, seed=7, stream=-3), task, width=3)
    assert scores[name] >= least
    if task == "tsp":
        assert scores["gap"] < 0.06
