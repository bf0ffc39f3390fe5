"""Gaze that is generated, and gaze that is recorded: what files may hold, who is held out, how near two people are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attensor.data.gaze import Gaze, generated, padded_paths, recorded
from attensor.data.object_scenes import Scenes
from attensor.data.scanpath_files import read_scanpaths
from attensor.data.shelves import Shelves, ShelvesConfig
from attensor.errors import DataError
from attensor.metrics.scanpath import sequence_score
from attensor.train.scanpaths import ceiling


def line(**changes: Any) -> dict[str, Any]:
    cells = [[0, 0], [0, 1], [1, 0]]
    looks = [[0.5, 1.0], [0.0, 2.0], [1.5, -1.0]]
    return {"grid": [2, 2], "cells": cells, "looks": looks, "target": 2, "fixations": [1, 2], **changes}


def written(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), "utf-8")
    return path


def test_observers_do_what_they_are_said_to_do() -> None:
    """All end at the target unless it takes too long; the first look follows the softmax of likeness and nearness."""
    shelves = Shelves()
    scenes, products = shelves.scenes(2, seed=3)
    many = Scenes.join([scenes[:1]] * 4000)
    paths = shelves.paths(many, products[:1].expand(4000, -1), seed=1)
    ends = paths.gather(1, (paths >= 0).sum(1, keepdim=True) - 1)
    assert (ends == many.target[:, None]).double().mean() > 0.98
    looks = shelves.looks[products[0]]
    far = (scenes.cells[0] - torch.tensor([1.0, 2.5])).abs().sum(-1)
    expected = (6 * looks @ looks[scenes.target[0]] - far / 2).softmax(-1)
    found = torch.bincount(paths[:, 0], minlength=18) / 4000
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=0.03)


def test_generated_scenes_repeat_and_differ_by_stream() -> None:
    one, two, other = (generated(Shelves(), 20, seed=0, stream=stream, observers=2) for stream in (0, 0, 1))
    assert torch.equal(one.paths, two.paths)
    assert torch.equal(one.scenes.looks, two.scenes.looks)
    assert not torch.equal(one.scenes.looks, other.scenes.looks)
    assert not torch.equal(one.paths[:20], one.paths[20:])
    assert one.groups.tolist() == [*range(20)] * 2


def test_crops() -> None:
    """Products have crops of their own, large enough for the published convolutions."""
    shelves = Shelves(ShelvesConfig(crops=True))
    scenes, _ = shelves.scenes(1, seed=0)
    assert scenes.looks.shape == (1, 18, *shelves.look, 3)
    assert 0 <= float(scenes.looks.min()) <= float(scenes.looks.max()) <= 1
    assert len({crop.numpy().tobytes() for crop in scenes.looks[0]}) == 18


def test_batches_hold_each_path_once_an_epoch() -> None:
    gaze = generated(Shelves(), 10, seed=0)
    marked = Gaze(gaze.scenes, gaze.paths, torch.arange(10))
    seen = torch.cat([marked.batch(step, seed=0, batch_size=4).groups for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))


def test_ceiling() -> None:
    paths = padded_paths([torch.tensor(x) for x in ([1, 2], [3], [1, 0, 2], [2])])
    gaze = generated(Shelves(), 4, seed=0)
    groups = torch.tensor([0, 1, 0, 0])
    scores = [sequence_score(paths[[i]], paths[[j]]).item() for i, j in ((0, 2), (0, 3), (2, 3))]
    assert ceiling(Gaze(gaze.scenes, paths, groups)) == pytest.approx(sum(scores) / 3)
    assert ceiling(Gaze(gaze.scenes, paths, torch.arange(4))) is None


def test_a_file(tmp_path: Path) -> None:
    found = read_scanpaths(written(tmp_path / "gaze.jsonl", line(), "", line(fixations=None), line(target=0)))
    assert [None if path is None else path.tolist() for path in found.paths] == [[1, 2], None, [1, 2]]
    assert [int(scene.target) for scene in found.scenes] == [2, 2, 0]


@pytest.mark.parametrize("whole", [line(names=["tea", "oats", "jam"]), [line(), line(target=0)]], ids=["one", "list"])
def test_a_file_written_for_people(tmp_path: Path, whole: Any) -> None:
    """A scene on many lines, and a list of scenes."""
    (tmp_path / "scene.json").write_text(json.dumps(whole, indent=2))
    found = read_scanpaths(tmp_path / "scene.json")
    assert len(found.scenes) == (len(whole) if isinstance(whole, list) else 1)
    assert found.names[0] == (() if isinstance(whole, list) else ("tea", "oats", "jam"))
    (tmp_path / "scene.json").write_text(json.dumps(whole, indent=2)[:-9])
    with pytest.raises(DataError, match=r"scene\.json, line [0-9]{2}: is no JSON"):
        read_scanpaths(tmp_path / "scene.json")


def test_crops_in_files(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for number, size in enumerate([(40, 30), (20, 60), (40, 30)]):
        image.new("RGB", size, (100 * number, 0, 255)).save(tmp_path / f"{number}.png")
    given = {**line(), "crops": ["0.png", "1.png", "2.png"]}
    del given["looks"]
    written(tmp_path / "gaze.json", given)
    looks = read_scanpaths(tmp_path / "gaze.json").scenes[0].looks
    assert looks.shape == (1, 3, 30, 40, 3)
    torch.testing.assert_close(looks[0, 2, 0, 0], torch.tensor([200 / 255, 0, 1]))
    assert read_scanpaths(tmp_path, crop_size=(31, 33)).scenes[0].looks.shape == (1, 3, 31, 33, 3)


def test_people_of_a_scene_are_never_on_both_sides(tmp_path: Path) -> None:
    lines = [line(target=target, fixations=[first, target]) for target in range(3) for first in (0, 1, 2)]
    train, held_out = recorded(read_scanpaths(written(tmp_path / "gaze.jsonl", *lines)), held_out=0.34, seed=0)
    assert (len(train), len(held_out)) == (6, 3)
    assert not set(train.scenes.target.tolist()) & set(held_out.scenes.target.tolist())


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ("{", r"line 2: is no JSON \(Expecting"),
        ("[1, 2]", "line 2: must be an object in braces"),
        ({"grid": [2, 2]}, "line 2: there is no 'cells'"),
        (line(target=3), "line 2: .*target must be an object"),
        (line(fixations=[3]), "line 2: fixations must be objects from 0 to 2"),
        (line(fixations=[]), "line 2: fixations must be"),
        (line(cells=[[0, 0], [0, 2], [1, 0]]), "line 2: .*cells must lie on the grid"),
        (line(cells=[[0, 0]]), "line 2: looks must be as many as cells, 1, got 3"),
        (line(looks=[[1.0], [float("nan")], [0.0]]), "line 2: looks must be numbers"),
        (line(looks=[["a"], ["b"], ["c"]]), "line 2: looks must be numbers, as many of every object"),
        (line(looks=[[1.0], [1.0, 2.0], [0.0]]), "line 2: looks must be numbers, as many of every object"),
        (line(looks=[1.0, 2.0, 3.0]), "line 2: looks must be a list of numbers for each object"),
        (line(cells=[]), r"line 2: cells must be \[row, column\] of each object, in whole numbers, got \[\]"),
        (line(cells=[[0, 0], [0, 0.5], [1, 0]]), "line 2: cells must be .*whole numbers"),
        (line(grid=[2]), "line 2: .*grid must be"),
        (line(grid=[2**70, 2]), r"line 2: grid must be \[rows, columns\], in whole numbers"),
        (line(target="2"), "line 2: target must be the number of an object, in whole numbers, got '2'"),
        (line(fixations=[1.5]), "line 2: fixations must be objects from 0 to 2, at least one, in whole numbers"),
        (line(names=["milk"]), "line 2: names must be as many as cells, 3, got 1"),
        ({**{key: x for key, x in line().items() if key != "looks"}, "crops": "a.png"}, "line 2: crops must be names"),
    ],
)
def test_lines_that_are_refused(tmp_path: Path, wrong: Any, match: str) -> None:
    with pytest.raises(DataError, match=f"gaze.jsonl, {match}"):
        read_scanpaths(written(tmp_path / "gaze.jsonl", line(), wrong))


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no scene in it"):
        read_scanpaths(tmp_path)
    unseen = read_scanpaths(written(tmp_path / "a.jsonl", line(fixations=None)))
    with pytest.raises(DataError, match="scene 1 has no fixations"):
        recorded(unseen, held_out=0.5, seed=0)
    single = read_scanpaths(written(tmp_path / "a.jsonl", line(), line()))
    with pytest.raises(DataError, match="too few"):
        recorded(single, held_out=0.5, seed=0)
    (tmp_path / "fixations.csv").write_text("participant_id,CURRENT_FIX_X")
    with pytest.raises(DataError, match="name the folder"):
        read_scanpaths(tmp_path / "fixations.csv")
    absent = {**line(), "crops": ["nothing.png"] * 3}
    del absent["looks"]
    with pytest.raises(DataError, match=r"scene 1: .*nothing\.png"):
        read_scanpaths(written(tmp_path / "a.jsonl", absent))
