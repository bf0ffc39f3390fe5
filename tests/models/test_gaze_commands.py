"""`attensor train scanpaths` and `attensor solve scanpath`: models, pictures, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attensor import cli
from attensor.data.gaze import Gaze, generated
from attensor.data.shelves import Shelves, ShelvesConfig
from attensor.models.pointing import OAT
from attensor.report.gaze import pictures
from attensor.train.scanpaths import scores_of

SMALL = ["--steps", "6", "--scenes", "40", "--batch-size", "8", "--held-out", "0.2"]


def trained(out: Path, *more: str) -> int:
    return cli.main(["train", "scanpaths", "generated", "--out", str(out), *SMALL, *more])


def lines(gaze: Gaze) -> list[dict[str, Any]]:
    scenes = gaze.scenes
    return [
        {
            "grid": scenes.grid[i].tolist(), "cells": scenes.cells[i].tolist(), "looks": scenes.looks[i].tolist(),
            "names": [f"product {number}" for number in range(scenes.looks.shape[1])],
            "target": int(scenes.target[i]), "fixations": gaze.paths[i][gaze.paths[i] >= 0].tolist(),
        }
        for i in range(len(gaze))
    ]  # fmt: skip


def written(path: Path, *, grids: tuple[tuple[int, int], ...] = ((2, 3),), observers: int = 1) -> Path:
    gazes = [generated(Shelves(ShelvesConfig(grid=grid)), 6, seed=0, observers=observers) for grid in grids]
    path.write_text("\n".join(json.dumps(line) for gaze in gazes for line in lines(gaze)))
    return path


def test_a_model_is_trained_kept_and_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained(tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "40 paths to learn from" in out
    assert "two people 0." in out
    scene = written(tmp_path / "scene.json", grids=((2, 3), (3, 4)))
    command = ["solve", "scanpath", str(scene), "--model", str(tmp_path / "run"), "--samples", "20"]
    for suffix in ("html", "json"):
        assert cli.main([*command, "--out", str(tmp_path / f"path.{suffix}")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "of 20 paths end at the target" in shown
    assert "The file holds 12 scenes; this is number 1." in shown
    page = (tmp_path / "path.html").read_text()
    assert page.count("<svg") == 3  # the person's too
    assert page.count("<rect x=") == 3 * 6
    assert ">product 5<" in page
    kept = json.loads((tmp_path / "path.json").read_text())
    assert len(kept["samples"]) == 20


def test_recorded_gaze_of_mixed_shelves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shelves of two shapes, each seen by two people, of which none is seen in training and in the scores."""
    file = written(tmp_path / "gaze.jsonl", grids=((2, 3), (3, 4)), observers=2)
    command = ["train", "scanpaths", str(file), "--steps", "3", "--batch-size", "8", "--out", str(tmp_path / "run")]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "22 paths to learn from, 2 held out, scenes of up to 12 objects on 3 x 4 places" in out
    assert "two people" in out


def test_more_columns_than_a_preset_has_room_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first preset with enough is taken; one that is asked for and has not is refused before it is written."""
    file, command = written(tmp_path / "gaze.jsonl", grids=((1, 9),)), ["train", "scanpaths"]
    options = ["--steps", "1", "--batch-size", "2", "--held-out", "0.2", "--out", str(tmp_path / "run")]
    assert cli.main([*command, str(file), *options, "--preset", "oat_generated"]) == 2
    assert "oat_generated: has room for 8 rows or columns, and the data has 9" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.main([*command, str(file), *options]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["max_places"] == 32


def test_scores_of_one_who_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths of the people themselves score 1 and are off by nothing."""
    gaze = generated(Shelves(), 5, seed=0)
    monkeypatch.setattr(OAT, "generate", lambda self, scenes, **options: (gaze.paths[:, None], None))
    scores = scores_of(OAT(OAT.presets["oat_generated"]), gaze)
    assert (scores["score"], scores["edit"], scores["delta"]) == (1, 0, 0)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (["--held-out", "1"], "--held-out 1.0: must be above 0 and below 1"),
        (["--preset", "oat"], "--preset 'oat': must be one of"),
        (["--learning-rate", "nan"], "--learning-rate nan: must be above 0"),
        (["--crop", "5"], "give height and width"),
    ],
)
def test_impossible_trainings_are_refused(
    more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained(tmp_path / "run", *more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("{", [], "line 1"),
        (None, [], "no such file"),
        ("", ["--out", "path.png"], "must end in .html or .json"),
        ("", ["--out", "no/such/path.html"], "there is no folder"),
        ("", ["--samples", "0"], "--samples must be at least 1"),
        ("", ["--number", "2"], "--number 2: "),
        ("", ["--model", "no-model"], "no-model holds no model"),
    ],
)
def test_bad_questions_are_one_line(
    text: str | None, options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    (tmp_path / "model").mkdir()
    OAT(OAT.tiny).save(tmp_path / "model")
    if text is not None:
        (tmp_path / "scene.json").write_text(text or json.dumps(lines(generated(Shelves(), 1, seed=0))[0]))
    given = [] if "--model" in options else ["--model", str(tmp_path / "model")]
    assert cli.main(["solve", "scanpath", str(tmp_path / "scene.json"), *given, *options]) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert (out, err.count("\n")) == ("", 1)


def test_a_scene_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    OAT(OAT.tiny).save(tmp_path / "model")
    scene = written(tmp_path / "scene.json")
    assert cli.main(["solve", "scanpath", str(scene), "--model", str(tmp_path / "model")]) == 2
    assert "looks must be [B, N, 5]" in capsys.readouterr().err


def test_numbers_of_fixations_are_legible() -> None:
    """Those in a row on one object share a mark; those that come back stand beside it, inside its cell."""
    scene, _ = Shelves(ShelvesConfig(grid=(2, 3))).scenes(1, seed=0)
    path = torch.tensor([0, 4, 4, 4, 0, 1] + 12 * [4, 5])
    stops = pictures(scene, None, [path], path)[0].stops
    assert [text for _, _, text in stops][:5] == ["1", "2-4", "5", "6", "7"]
    assert stops[2][:2] == (stops[0][0], stops[0][1] + 22)
    cell = stops[1]
    assert all(abs(x - cell[0]) <= 28 and 0 <= y - cell[1] <= 22 for x, y, _ in stops[4::2])
    assert len({stop[:2] for stop in stops[4::2]}) == 6
