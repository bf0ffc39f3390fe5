"""`attensor bench vision`: whole models against timm's with the same weights, and without timm."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from attensor.bench.apart import Apart, FirstCall, LeftOut
from attensor.bench.contestants import vision
from attensor.bench.hold import hold
from attensor.commands.bench_vision import BenchVision

VIT = "vit_tiny_patch16_224"
OPTIONS = BenchVision(models=(VIT,), batch_size=2, image_size=32, rounds=1)
NEEDS_TIMM = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm")


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Apart, "first_call", lambda *_, **__: FirstCall(2**20))
    vision._pair.cache_clear()


def held(options: BenchVision, folder: Path) -> tuple[dict[str, Any], str]:
    """What a run writes."""
    assert hold("vision", replace(options, save=True), Console(quiet=True), folder=folder) == 0
    return json.loads(next(folder.glob("*.json")).read_text()), next(folder.glob("*.md")).read_text()


@NEEDS_TIMM
def test_the_same_weights_are_timed_at_rates_of_images(tmp_path: Path) -> None:
    written, page = held(OPTIONS, tmp_path)
    assert {check["peer"]: check["max_error"] < 1e-5 for check in written["checks"]} == {"ours": True, "timm": True}
    timed = {(row["peer"], row["mode"]) for row in written["rows"] if row["seconds"]}
    assert timed == {(peer, mode) for peer in ("ours", "timm") for mode in ("forward", "training")}
    assert page.count("| images/s |") == 2
    assert "tokens/s" not in page


@NEEDS_TIMM
def test_another_model_of_that_name_or_none_is_left_out() -> None:
    reasons = {"halonet_h1": "timm's halonet_h1 does not fit this HaloNet: ", "halonet_h0": "timm .* has no halonet_h0"}
    for name, reason in reasons.items():
        with pytest.raises(LeftOut, match=reason):
            vision.PEERS[1].build(vision.VisionProblem(name, 1, 32, 1))


def test_without_timm_ours_is_timed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise LeftOut("timm is not installed")

    monkeypatch.setattr(vision, "load_timm", absent)
    written, _ = held(OPTIONS, tmp_path)
    assert [check["reason"] for check in written["checks"]] == ["", "timm is not installed"]
    assert {row["peer"] for row in written["rows"]} == {"ours"}


def test_the_usual_ones_are_those_that_there_are() -> None:
    bench = vision.bench(BenchVision())
    names = [problem.model for problem in bench.small]
    assert names == sorted(names)
    assert {"davit_tiny", "halonet26t", "l2vit_tiny", "maxvit_tiny_tf_224", "nat_tiny", "ravlt_s"} < set(names)
    assert [(cell.mode, cell.problems[0].image_size) for cell in bench.cells[:4]] == [
        ("forward", 224), ("training", 224), ("forward", 256), ("training", 256),
    ]  # fmt: skip
    assert {problem.batch_size for problem in bench.small} == {1}
    both = replace(OPTIONS, models=(VIT, "usual", VIT), device="cuda")
    assert [problem.model for problem in vision.bench(both).small] == [VIT, *names]
    assert {problem.device for problem in vision.bench(both).small} == {"cuda"}


def test_a_name_that_is_no_image_model_is_refused() -> None:
    for name, hint in (("davit_tyni", "Did you mean 'davit_tiny'"), ("gla_340M", "no image model is called")):
        with pytest.raises(ValueError, match=f"bench vision: --models: .*{hint}"):
            vision.bench(BenchVision(models=(name,)))


def test_norms_are_over_the_batch_in_training_alone() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 4), torch.nn.BatchNorm2d(5), torch.nn.Flatten())
    model.num_classes, model.num_features = 0, 5
    contestant = vision._contestant(vision.VisionProblem("toy", 2, 4, 1), model)
    before = model[1].running_mean.clone()
    contestant.call("forward")()
    assert torch.equal(model[1].running_mean, before)
    gradients = contestant.call("training")()
    assert [gradient.shape for gradient in gradients] == [parameter.shape for parameter in model.parameters()]
    assert not torch.equal(model[1].running_mean, before)


def test_a_model_of_images_is_given_levels() -> None:
    ours, timm, _ = vision.PEERS
    problem = vision.VisionProblem("axial_digits", 2, 8, 1)
    contestant = ours.build(problem)
    assert contestant.forward().shape == (2, 1, 8, 8, 17)
    gradients = contestant.call("training")()
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    with pytest.raises(LeftOut, match=r"has no axial_digits|timm is not installed"):
        timm.build(problem)


@NEEDS_TIMM
@pytest.mark.slow
def test_swin_stands_beside_models_of_its_size() -> None:
    swin = vision.PEERS[-1]
    assert [swin.solves(vision.VisionProblem(name, 1, 64, 1)) for name in ("nat_tiny", "davit_tiny")] == [True, False]
    problem = vision.VisionProblem("nat_tiny", 1, 64, 1)
    assert swin.build(problem).forward().shape == (1, 1000)
