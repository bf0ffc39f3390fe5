"""Image training without labels: levels and bits a dimension, for whatever model has the methods of a likelihood."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from attensor import cli, models
from attensor.catalogue import cards, load
from attensor.data.augment import Views
from attensor.data.image_source import ImageSource, open_image_source
from attensor.data.mixing import Mixing
from attensor.data.pictures import read_picture
from attensor.models.vision import VisionTransformer
from attensor.models.vision.axial_pictures import levels_of_file
from attensor.models.vision.axial_transformer import AxialTransformer
from attensor.models.vision.dit import DiT
from attensor.train import Stopped
from attensor.train.image import ImageSetup, ImageTraining
from attensor.train.image_recipe import RECIPES
from attensor.train.image_tasks import BitScores, ClassScores, ImageLikelihood, task_of

RECIPE = RECIPES["axial"]
GREY = replace(AxialTransformer.presets["axial_digits"], hidden_size=8, num_heads=2, num_outer_layers=2)


@pytest.fixture(scope="module")
def digits() -> ImageSource:
    return open_image_source("digits")


def training(source: ImageSource, model: nn.Module, size: tuple[int, int], **changes: Any) -> ImageTraining:
    setup = ImageSetup(recipe=RECIPE, image_size=size, batch_size=16, steps=9, evaluations=3)
    return ImageTraining(model, source, replace(setup, **changes))


def axial(config: Any, seed: int = 3) -> AxialTransformer:
    torch.manual_seed(seed)
    return AxialTransformer(config)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, digits: ImageSource) -> None:
    """In colour, where the channel of each image is drawn as it trains, with dropout and an average."""
    config = replace(AxialTransformer.tiny, dropout=0.3)
    whole = training(digits, axial(config), config.image_size)
    whole.run()
    path = tmp_path / "state.safetensors"
    with pytest.raises(Stopped):
        training(digits, axial(config), config.image_size).run(path, on_step=lambda p: p.step != 4)
    torch.rand(7)
    again = training(digits, axial(config), config.image_size)
    again.run(path)
    assert again.scores[9] == whole.scores[9]
    for own, other in ((whole.model, again.model), (whole.trained, again.trained)):
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in own.state_dict().items())
    assert not torch.equal(
        whole.model.state_dict()["plane.head.weight"], whole.trained.state_dict()["plane.head.weight"]
    )


def test_the_levels_are_those_of_the_source(digits: ImageSource) -> None:
    """scikit-learn's digits have 17 levels: a batch has them as they are, and the score is that of the model."""
    from sklearn.datasets import load_digits

    one = training(digits, axial(GREY), GREY.image_size)
    raw = torch.tensor(load_digits().images).long()[:, None]
    (levels,) = one.batch(0)
    assert levels.shape == (16, 1, 8, 8)
    known = {tuple(image.flatten().tolist()) for image in raw[digits.train]}
    assert all(tuple(image.flatten().tolist()) in known for image in levels)
    one.run()
    scores = one.score(one.trained.eval(), digits.held_out)
    assert isinstance(scores, BitScores)
    with torch.no_grad():
        bits = -one.trained.log_likelihood(raw[digits.held_out]).double().mean() / (64 * math.log(2))  # type: ignore[operator]
    assert scores.bits_per_dim == pytest.approx(bits.item(), rel=1e-6)
    assert scores.images == 364
    assert one.scores[9] == scores
    assert str(scores) == f"{bits:.4f} bits/dim, of 364 images"


def test_a_grey_model_sees_colours_as_pillow_makes_them_grey(tmp_path: Path, digits: ImageSource) -> None:
    noise = Image.frombytes("RGB", (8, 8), bytes(range(7, 199)))
    noise.save(tmp_path / "x.png")
    config = replace(GREY, num_levels=256)
    source = replace(digits, open=lambda number: noise)
    (levels,) = training(source, axial(config), (8, 8)).batch(0)
    grey = levels_of_file(tmp_path / "x.png", config)
    assert (levels - grey).abs().max() <= 1  # Pillow rounds the brightness, then the level
    colours = read_picture(tmp_path / "x.png", channels=3)[0]
    shape = replace(AxialTransformer.tiny, image_size=(8, 8), num_levels=256)
    (levels,) = training(source, axial(shape), (8, 8)).batch(0)
    assert torch.equal(levels[3], colours.long())


class Frequencies(nn.Module):
    """Each pixel's levels by themselves: the least that is a likelihood, unknown to the library."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=1, image_size=(8, 8))
        self.logits = nn.Parameter(torch.zeros(1, 8, 8, 17))

    def quantize(self, images: Tensor) -> Tensor:
        return ((images + 1) * 8).round().long()

    def bits_per_dim(self, images: Tensor) -> Tensor:
        chosen = self.logits.log_softmax(-1).expand(len(images), -1, -1, -1, -1).gather(-1, images[..., None])
        return -chosen.flatten(1).mean(1) / math.log(2)

    def training_loss(self, images: Tensor) -> Tensor:
        return self.bits_per_dim(images).mean()

    def save(self, folder: str | Path, notes: Mapping[str, Any] | None = None) -> None:
        raise NotImplementedError


def test_any_model_with_the_methods_is_trained(digits: ImageSource) -> None:
    """Its limit is known: the frequencies of each pixel's levels give 1.638 nats, and guessing log 17."""
    model = Frequencies()
    assert isinstance(model, ImageLikelihood)
    recipe = replace(RECIPE, learning_rate=0.15, final_factor=0.0, ema=None, clip_norm=None)
    one = training(digits, model, (8, 8), recipe=recipe, batch_size=64, steps=100, evaluations=2)
    one.check()
    one.run()
    # 1.678 was seen: levels that are rare are not learnt in so few steps
    assert 1.638 < one.scores[100].value * math.log(2) < 1.638 * 1.03
    assert one.scores[50].value > one.scores[100].value


def test_the_catalogue_says_by_methods_who_is_trained_how() -> None:
    """Every class of a card that is trained on images has a task, but one that is trained on noise."""
    kinds = {load(path) for card in cards().values() for path in card.models if "train image" in card.commands}
    assert AxialTransformer in kinds
    assert VisionTransformer in kinds
    assert [kind for kind in kinds if task_of(kind) is None] == [DiT]
    for kind in kinds - {DiT}:
        task = task_of(kind)
        assert task is not None
        assert task.scores is (BitScores if kind is AxialTransformer else ClassScores)
    assert task_of(nn.Linear) is None


class Reluctant(VisionTransformer):
    """A classifier with a loss of its own."""

    def training_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        return self(images)[:, 3].square().mean() + 0 * targets.sum()


def test_a_classifier_is_trained_by_its_own_loss(digits: ImageSource) -> None:
    torch.manual_seed(0)
    model = Reluctant(replace(VisionTransformer.tiny, num_classes=10, image_size=(8, 8)))
    before = model.head.weight.clone()
    training(digits, model, (8, 8), steps=2, recipe=replace(RECIPES["light"], weight_decay=0.0)).run()
    changed = (model.head.weight != before).any(1)
    assert changed.tolist() == [row == 3 for row in range(10)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"smoothing": 0.1}, r"smoothing 0\.1: AxialTransformer is a model of the images themselves"),
        ({"mixing": Mixing(mixup=0.8, cutmix=1.0)}, r"mixup 0\.8, cutmix 1: Axial"),
        ({"views": Views(erasing=0.25)}, r"erasing 0\.25.*or take the recipe axial"),
        ({"layer_decay": 0.5}, "layer_decay is for image models"),
    ],
    ids=str,
)
def test_what_is_of_labels_is_refused(digits: ImageSource, changes: dict[str, Any], said: str) -> None:
    one = training(digits, axial(GREY), GREY.image_size, recipe=replace(RECIPE, **changes))
    with pytest.raises(ValueError, match=said):
        one.check()


def test_images_that_a_model_does_not_take_are_refused(digits: ImageSource) -> None:
    with pytest.raises(ValueError, match="image_size 9 x 8 is not one of this AxialTransformer"):
        training(digits, axial(GREY), (9, 8)).check()
    video = replace(AxialTransformer.tiny, num_frames=2)
    with pytest.raises(ValueError, match=r"must be \[B, 2, 3, 3, 4\], got \[1, 3, 3, 4\]"):
        training(digits, axial(video), (3, 4)).check()


def command(out: Path, *options: str) -> list[str]:
    return ["train", "image", "--model", "axial_digits", "--data", "digits", "--out", str(out), *options]


def test_the_command_trains_what_completes_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "axial"
    typed = command(out, "--epochs", "0.05", "--batch-size", "8", "--threads", "1")
    assert cli.main(typed) == 0
    shown = capsys.readouterr().out
    assert "1433 images of 10 classes at 8 x 8, 364 held out" in shown
    assert "bits/dim, of 364 images" in shown
    assert "top-1" not in shown
    assert f"Model: attensor.models.create('axial_digits', img_size=8, pretrained='{out}')" in shown.replace("\n", "")
    assert f"attensor solve complete --model {out}" in shown.replace("\n", "")
    model, loaded = models.create("axial_digits", img_size=8, pretrained=out), AxialTransformer.load(out)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    found = json.loads((out / "config.json").read_text())
    curve = json.loads((out / "curve.json").read_text())["points"]
    assert found["notes"]["held_out"] == {k: v for k, v in curve[-1].items() if k != "step"}
    assert curve[-1]["bits_per_dim"] < math.log2(17)
    assert json.loads((out / "run.json").read_text())["asked"]["recipe"] == "axial"
    Image.frombytes("L", (8, 4), bytes(range(32))).save(tmp_path / "half.png")
    drawn = ["--image", str(tmp_path / "half.png"), "--out", str(tmp_path / "sheet.png"), "--count", "2"]
    assert cli.main(["solve", "complete", "--model", str(out), *drawn]) == 0
    assert "32 of 64 values drawn, 2 times" in capsys.readouterr().out
    assert cli.main(typed) == 0
    assert "is finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--recipe", "light"], "smoothing 0.1: AxialTransformer is a model of the images themselves"),
        (["--cutmix", "1"], "cutmix 1: AxialTransformer"),
        (["--drop-path", "0.1"], "axial_digits has no drop_path_rate"),
        (["--image-size", "9", "--init", "x"], "x"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert cli.main([*command(tmp_path / "run"), *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_it_learns_rows_and_what_is_above_them(digits: ImageSource) -> None:
    """Half of the recipe's steps: below what each pixel's own frequencies give, 1.638 nats, by a tenth."""
    torch.manual_seed(0)
    model = AxialTransformer(AxialTransformer.presets["axial_digits"])
    one = training(digits, model, (8, 8), batch_size=64, steps=120)
    one.run()
    assert one.scores[120].value * math.log(2) < 0.9 * 1.638
