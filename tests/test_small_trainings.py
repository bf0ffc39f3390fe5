"""Small trainings: a run goes on to the same bits, is left alone when it is done, and is never another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attensor import cli
from attensor.lab.interruption import Interruption

GRAPH = [(f"a{i}", f"plus{k}", f"a{(i + k) % 9}") for i in range(9) for k in (1, 2, 3)]
POINTS = ["points", "--task", "hull", "--sizes", "5,6", "--instances", "30", "--held-out", "8", "--hidden-size", "8"]
SCANPATHS = ["scanpaths", "generated", "--scenes", "40", "--batch-size", "8", "--held-out", "0.2"]
TRIPLES = ["triples", "graph.tsv", "--batch-size", "8", "--epochs", "2", "--dim", "6"]
TRAININGS = {
    "points": [*POINTS, "--steps", "6"],
    "scanpaths": [*SCANPATHS, "--steps", "6"],
    "triples": TRIPLES,
    "brain": [*TRIPLES, "--model", "brain", "--episodes", "3"],
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with a graph."""
    (tmp_path / "graph.tsv").write_text("".join("\t".join(row) + "\n" for row in GRAPH))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("training", TRAININGS)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    training: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *TRAININGS[training], "--out"]
    assert cli.main([*command, "whole"]) == 0
    asked = iter([False, False, True])
    with monkeypatch.context() as patched:
        patched.setattr(Interruption, "requested", property(lambda self: next(asked), lambda self, value: None), False)
        assert cli.main([*command, "cut"]) == 130
    assert "stopped after step 3 of 6; the same command goes on" in capsys.readouterr().out.lower()
    assert not (place / "cut" / "config.json").exists()
    torch.rand(7)  # a resumed process has another random state
    assert cli.main([*command, "cut"]) == 0
    resumed = capsys.readouterr().out
    assert "step 6/6" in resumed
    assert "step 1/6" not in resumed
    whole, cut = (load_file(place / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], x) for name, x in cut.items())


@pytest.mark.parametrize("training", TRAININGS)
def test_a_finished_run_is_left_alone_and_is_no_other(
    training: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *TRAININGS[training], "--out", "run"]
    assert cli.main(command) == 0
    kept = (place / "run" / "model.safetensors").read_bytes()
    assert cli.main(command) == 0
    assert "is finished" in capsys.readouterr().out
    assert cli.main([*command, "--seed", "1"]) == 2
    assert "goes on only as it began: seed was 0 and is now 1" in capsys.readouterr().err
    assert (place / "run" / "model.safetensors").read_bytes() == kept


def test_a_graph_is_known_by_what_is_in_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same triples may lie in another file; others may not lie in this one."""
    assert cli.main(["train", *TRIPLES, "--out", "run"]) == 0
    (place / "graph.tsv").rename(place / "moved.tsv")
    assert cli.main(["train", "triples", "moved.tsv", *TRIPLES[2:], "--out", "run"]) == 0
    (place / "graph.tsv").write_text((place / "moved.tsv").read_text() + "a0\tplus1\ta4\n")
    capsys.readouterr()
    assert cli.main(["train", *TRIPLES, "--out", "run"]) == 2
    assert "the data are others than they were" in capsys.readouterr().err


def test_a_folder_of_others_is_left_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "letter.txt").write_text("dear")
    for out in ("mine", "graph.tsv"):
        assert cli.main(["train", *TRIPLES, "--out", out]) == 2
        assert "there is something else already; give a new folder" in capsys.readouterr().err
    assert [path.name for path in (place / "mine").iterdir()] == ["letter.txt"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("training", ["triples", "brain"])
def test_a_model_is_trained_on_a_gpu_and_read_without_one(training: str, place: Path) -> None:
    command = ["train", *TRAININGS[training], "--device", "cuda", "--out", "run"]
    assert cli.main(command) == 0
    assert all(x.isfinite().all() for x in load_file(place / "run" / "model.safetensors").values())
    assert cli.main(["solve", "recall", "--model", "run", "--subject", "a0"]) in (0, None)
