"""Image training: it learns, stops anywhere and goes on to the same numbers, and keeps what `create` loads."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from attensor import cli, image_training, models
from attensor.catalogue import cards, load
from attensor.commands.train_image import TrainImage
from attensor.data.augment import Views
from attensor.data.image_source import open_image_source
from attensor.data.mixing import Mixing
from attensor.image_training import steps_within
from attensor.lab.step_display import StepDisplay
from attensor.models.vision import VisionTransformer
from attensor.models.vision.davit import DaViT
from attensor.models.vision.image_model import ImageModel
from attensor.models.vision.vit import ViTConfig
from attensor.train import Stopped
from attensor.train.ema import exponential_average
from attensor.train.image import ImageSetup, ImageTraining
from attensor.train.image_folder import ImageFolder
from attensor.train.image_recipe import RECIPES, ImageRecipe, find_recipe
from attensor.train.layer_decay import rate_shares

RECIPE = ImageRecipe(
    epochs=3,
    batch_size=32,
    learning_rate=3e-3,
    warmup_epochs=0.3,
    ema=0.9,
    layer_decay=0.8,
    views=Views(crop_scale=0.6, flip=0.0),
    mixing=Mixing(mixup=0.4, cutmix=1.0),
)
SETUP = ImageSetup(recipe=RECIPE, image_size=(16, 16), batch_size=32, steps=13, evaluations=3)


def training(setup=SETUP, *, classes=10, source=None, **options):
    torch.manual_seed(5)
    config = ViTConfig(
        image_size=(16, 16), patch_size=4, hidden_size=24, num_layers=2, num_heads=2, num_classes=classes,
        drop_path_rate=0.3,
    )  # fmt: skip
    return ImageTraining(VisionTransformer(config), source or open_image_source("digits"), setup, **options)


@pytest.fixture(scope="module")
def digits():
    return open_image_source("digits")


def state(one):
    return {**one.model.state_dict(), **{f"average.{k}": v for k, v in one.trained.state_dict().items()}}


@pytest.mark.parametrize("stops", [(1, 4, 9)], ids=str)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, digits, stops):
    """In the middle of an epoch, with stochastic depth, mixing, averaged weights and rates of their own."""
    setup = replace(SETUP, accumulate=2)
    whole = training(setup, source=digits)
    whole.run()
    path = tmp_path / "state.safetensors"
    for stop in stops:
        with pytest.raises(Stopped):
            training(setup, source=digits).run(path, on_step=lambda p, stop=stop: p.step != stop)
    torch.rand(11)
    again = training(setup, source=digits)
    again.run(path)
    assert again.scores[13] == whole.scores[13]
    own, other = state(whole), state(again)
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert not torch.equal(own["head.weight"], own["average.head.weight"])


@pytest.mark.slow
def test_it_learns_the_digits(digits):
    recipe = replace(RECIPES["light"], views=Views(crop_scale=0.8, flip=0.0), batch_size=32, learning_rate=3e-3)
    torch.manual_seed(5)
    setup = ImageSetup(recipe=recipe, image_size=(32, 32), batch_size=32, steps=150, evaluations=2)
    one = ImageTraining(DaViT(replace(DaViT.tiny, num_classes=10)), digits, setup)
    one.run()
    assert one.scores[150].top1 > max(0.75, one.scores[75].top1)
    assert one.scores[150].top5 > 0.97
    assert one.scores[150].images == 364


def test_scores_are_those_of_a_loop(digits):
    one = training(source=digits)
    scores = one.score(one.model.eval(), digits.held_out)
    from attensor.data.augment import plain_view

    images = torch.stack([plain_view(digits.open(i), (16, 16), RECIPE.views) for i in digits.held_out.tolist()])
    with torch.no_grad():
        logits = one.model(images)
    labels = digits.labels[digits.held_out]
    assert scores.top1 == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert scores.top5 == pytest.approx((logits.topk(5).indices == labels[:, None]).any(1).double().mean().item())
    assert scores.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_model_that_does_not_fit_is_refused_before_the_training(digits):
    with pytest.raises(ValueError, match=r"digits has 10 classes, and the model gives \[1, 7\]"):
        training(classes=7, source=digits).check()
    one = training(source=digits)
    one.model.patch_embed = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="image_size 16 x 16 is not one of this VisionTransformer"):
        one.check()


def test_a_budget_is_some_steps(digits):
    one = training(source=digits)
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    few, many = (steps_within(seconds, one) for seconds in (0.001, 1000.0))
    assert few < 20 < many
    assert all(torch.equal(before[name], tensor) for name, tensor in one.model.state_dict().items())


def test_rates_fall_from_block_to_block():
    model = DaViT(DaViT.tiny)
    shares = rate_shares(model, 0.5)
    assert shares.keys() == dict(model.named_parameters()).keys()
    blocks = sum(len(stage.blocks) for stage in model.stages)
    assert shares["head.fc.weight"] == shares["head.norm.weight"] == 1
    assert shares["stem.conv.weight"] == 0.5 ** (blocks + 1)
    assert shares[f"stages.{len(model.stages) - 1}.blocks.0.0.norm1.weight"] == 0.5 ** len(model.stages[-1].blocks)
    assert shares["stages.1.downsample.conv.weight"] == shares["stages.1.blocks.0.0.norm1.weight"]
    vit = rate_shares(VisionTransformer(VisionTransformer.tiny), 0.5)
    assert [vit[name] for name in ("pos_embed", "blocks.0.norm1.weight", "blocks.1.norm1.weight", "norm.weight")] == [
        *(0.125, 0.25, 0.5, 1.0)
    ]
    with pytest.raises(ValueError, match=r"above 0 and at most 1, got 1\.2"):
        rate_shares(model, 1.2)


def families():
    """Classes of image models, of every card that has some."""
    found = [load(path) for card in cards().values() for path in card.models if ".vision." in path]
    return [kind for kind in found if issubclass(kind, ImageModel)]


@pytest.mark.parametrize("family", families(), ids=lambda kind: kind.__name__)
def test_every_family_can_be_fine_tuned(family):
    """The stem has the smallest share, the head all of the rate, and blocks rise in between."""
    model = family(family.tiny)
    shares = rate_shares(model, 0.5)
    assert shares.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert shares[f"{model.classifier}.weight"] == 1
    first = next(iter(shares))
    assert shares[first] == min(shares.values())
    assert sorted(set(shares.values())) == [0.5**n for n in range(len(set(shares.values())) - 1, -1, -1)]


@pytest.mark.slow
@pytest.mark.parametrize("family", families(), ids=lambda kind: kind.__name__)
def test_every_family_is_trained_by_a_step(family, digits):
    torch.manual_seed(0)
    config = replace(family.tiny, num_classes=10, image_size=(64, 64))
    setup = ImageSetup(recipe=RECIPE, image_size=(64, 64), batch_size=4, steps=1, evaluations=0)
    one = ImageTraining(family(config), digits, setup)
    one.check()
    before = one.model.state_dict()[f"{one.model.classifier}.weight"].clone()
    one.run()
    after = one.model.state_dict()
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert not torch.equal(before, after[f"{one.model.classifier}.weight"])


def test_an_average_is_its_recursion():
    model = torch.nn.Linear(3, 1, bias=False).double()
    average = exponential_average(model, 0.6)
    values = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double()
    expected = values[0]
    for count, value in enumerate(values):
        model.weight.data.copy_(value)
        average.update_parameters(model)
        if count:
            decay = min(0.6, (1 + count) / (10 + count))
            expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.module.weight[0].detach(), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="below 1"):
        exponential_average(model, 1.0)


def test_recipes_are_those_of_the_papers():
    rates = {name: (r.learning_rate, r.batch_size, r.epochs) for name, r in RECIPES.items()}
    assert rates["davit"] == (2e-3, 2048, 300)
    assert rates["maxvit"] == (3e-3, 4096, 300)
    assert rates["nat"] == (1e-3, 1024, 300)
    assert RECIPES["davit"].learning_rate * RECIPES["davit"].final_factor == pytest.approx(1e-5)
    assert RECIPES["l2vit"].learning_rate * RECIPES["l2vit"].final_factor == pytest.approx(1e-6)
    changed = find_recipe("davit").with_options(mixup=0.1, flip=0.2, smoothing=0.3, erasing=None)
    assert (changed.mixing.mixup, changed.mixing.cutmix, changed.views.flip, changed.smoothing) == (0.1, 1.0, 0.2, 0.3)
    assert changed.views.erasing == 0.25
    with pytest.raises(ValueError, match=r"'davitt': is none of light.*Did you mean davit\?"):
        find_recipe("davitt")


def command(out: Path, *options: str, data: str = "digits") -> list[str]:
    small = ["--image-size", "16", "--batch-size", "8", "--workers", "0", "--threads", "1"]
    return ["train", "image", "--model", "vit_tiny_patch16_224", "--data", data, "--out", str(out), *small, *options]


def photographs(root: Path, classes=("lake", "wood"), count=8) -> Path:
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for n in range(count):
            noise = random.Random(f"{name}{n}").randbytes(3 * 20 * 20)
            image = Image.blend(
                Image.frombytes("RGB", (20, 20), noise),
                Image.new("RGB", (20, 20), (255 * (c == 0), 80, 255 * (c == 1))),
                0.7,
            )
            image.save(root / name / f"{n}.png")
    return root


def test_the_command_keeps_a_model_that_create_loads(tmp_path, capsys):
    data = photographs(tmp_path / "photos")
    (data / "wood" / "3.png").write_bytes(b"broken")
    out = tmp_path / "run"
    assert cli.main(command(out, "--epochs", "3", "--held-out", "0.25", data=str(data))) == 0
    shown = capsys.readouterr().out
    assert "12 images of 2 classes at 16 x 16, 4 held out" in shown
    assert "images/s" in shown
    assert "top-1" in shown
    assert "1 file left out: broken image (wood/3.png)." in shown
    config = json.loads((out / "config.json").read_text())
    assert config["classes"] == ["lake", "wood"]
    model = models.create(config["model"], num_classes=2, img_size=config["img_size"][0], pretrained=out)
    weights = load_file(out / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    curve = json.loads((out / "curve.json").read_text())
    assert config["held_out"] == {k: v for k, v in curve["points"][-1].items() if k != "step"}
    # the same again is finished; another request is refused
    assert cli.main(command(out, "--epochs", "3", "--held-out", "0.25", data=str(data))) == 0
    assert "is finished" in capsys.readouterr().out
    assert cli.main(command(out, "--epochs", "4", "--held-out", "0.25", data=str(data))) == 2
    assert "goes on only as it began: epochs was 3.0 and is now 4.0" in capsys.readouterr().err
    Image.new("RGB", (9, 9)).save(data / "wood" / "more.png")
    assert cli.main(command(out, "--epochs", "3", "--held-out", "0.25", data=str(data))) == 2
    assert "the images are others than they were" in capsys.readouterr().err
    # and its weights begin another, with a classifier of its own
    third = photographs(tmp_path / "other", classes=("lake", "road", "wood"), count=3)
    tuned = command(tmp_path / "tuned", "--init", str(out), "--recipe", "fine-tune", "--epochs", "0.5", data=str(third))
    assert cli.main(tuned) == 0
    assert "a classifier of 2 classes, the images have 3 classes: the classifier starts anew" in capsys.readouterr().out
    others = photographs(tmp_path / "others", classes=("road", "wood"), count=3)
    assert cli.main(command(tmp_path / "o", "--init", str(out), "--epochs", "0.5", data=str(others))) == 0
    assert "as many classes with other names" in capsys.readouterr().out


@pytest.mark.slow
def test_a_third_part_is_scored_once_at_the_end(tmp_path, capsys):
    for part, count in (("train", 8), ("val", 3), ("test", 5)):
        photographs(tmp_path / "photos" / part, count=count)
    assert cli.main(command(tmp_path / "run", "--epochs", "2", data=str(tmp_path / "photos"))) == 0
    shown = capsys.readouterr().out
    assert "16 images of 2 classes at 16 x 16, 6 held out" in shown
    assert re.search(r"Test, scored once: top-1 .* of 10 images", shown)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["held_out"]["images"], config["test"]["images"]) == (6, 10)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_a_run_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    """Also with a budget, whose steps are decided once."""
    typed = command(tmp_path / "run", "--budget", "1.5s", data=str(photographs(tmp_path / "photos")))
    shown = StepDisplay.step

    def interrupted(display, step, text=""):
        shown(display, step, text)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(StepDisplay, "step", interrupted)
    monkeypatch.setattr(image_training, "_PILOT_STEPS", 4)
    assert cli.main(typed) == 130
    assert "Stopped after step 2 of" in capsys.readouterr().out
    steps = json.loads((tmp_path / "run" / "run.json").read_text())["decided"]["steps"]
    assert not (tmp_path / "run" / "config.json").exists()
    written = json.loads((tmp_path / "run" / "run.json").read_text())["decided"]
    assert written["threads"] == 1
    assert written["kernels"] in ("cpp", "torch")
    seen = []
    monkeypatch.setattr(StepDisplay, "step", lambda display, step, text="": seen.append(step))
    assert cli.main(typed) == 0
    assert seen == list(range(3, steps + 1))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model", "vit_tinny_patch16_224"], "Did you mean 'vit_tiny_patch16_224'"),
        (["--model", "gla_340M"], "--model gla_340M: is a GLAForCausalLM and no model of images"),
        (["--recipe", "davt"], "Did you mean davit?"),
        (["--data", "no_such_folder"], "'no_such_folder' does not exist"),
        (["--epochs", "1", "--budget", "1m"], "--epochs and --budget exclude each other"),
        (["--budget", "soon"], "write a time such as 90s"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--init", "no_weights"], "no_weights"),
        (["--flip", "2"], "flip must be a share from 0 to 1"),
        (["--rand-augment", "3"], "give 2 numbers"),
        (["--held-out", "1"], "held_out must be a share"),
        (["--ema", "1"], "below 1"),
        (["--layer-decay", "-1"], "decay must be greater than 0"),
        (["--workers", "-1"], "--workers -1: must be at least 0"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_what_cannot_be_trained_is_one_line_and_leaves_no_folder(tmp_path, options, text, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command(tmp_path / "run"), *options]) == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("x")
    assert cli.main(command(tmp_path)) == 2
    assert "there is something else already" in capsys.readouterr().err


def test_a_run_that_was_killed_before_it_began_begins(tmp_path):
    (tmp_path / ".attensor-run").touch()
    assert ImageFolder(tmp_path).kept() is None


def test_kornia_is_missed_before_the_training(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "kornia" else find(name, *rest))
    assert cli.main([*command(tmp_path / "run"), "--recipe", "nat"]) == 2
    assert (
        'the recipe nat needs kornia, which is not installed: pip install "attensor[train]"' in capsys.readouterr().err
    )


def test_stochastic_depth_is_an_option_of_create():
    model = models.create("davit_tiny", drop_path_rate=0.35, device="meta")
    assert model.stages[-1].blocks[-1][1].drop_path.rate == pytest.approx(0.35)


def test_a_command_from_python_is_checked_too():
    with pytest.raises(ValueError, match="--threads 0"):
        TrainImage(model="x", data="y", threads=0)


KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from attensor.data.image_source import open_image_source
from attensor.models.vision.davit import DaViT
from attensor.models.vision.image_model import ImageModel
from attensor.train.image import ImageSetup, ImageTraining
from attensor.train.image_folder import ImageFolder
from attensor.train.image_folder import ImageFolder
from attensor.train.image_recipe import RECIPES

class Eager(ImageTraining):
    config = property(lambda self: replace(ImageTraining.config.fget(self), checkpoint_seconds=0.0))

def told(progress):
    print(progress.step, flush=True)
    return True

torch.set_num_threads(1)
torch.manual_seed(0)
folder = ImageFolder(Path(sys.argv[1]))
folder.path.mkdir(exist_ok=True)
source = open_image_source(sys.argv[2])
model = DaViT(replace(DaViT.tiny, num_classes=2, drop_path_rate=0.2))
recipe = RECIPES["light"].with_options(ema=0.9, mixup=0.5)
setup = ImageSetup(recipe=recipe, image_size=(32, 32), batch_size=8, steps=45, evaluations=3)
training = Eager(model, source, setup, workers=2)
training.run(folder.checkpoint, on_step=told)
folder.keep_model(training, "davit_tiny", None)
"""


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit(tmp_path):
    """With worker processes, killed after steps of chance: the end is that of an undisturbed run."""
    data = photographs(tmp_path / "photos", count=20)
    finished, begun = [], []
    for name, kills in (("whole", []), ("killed", [12, 17])):
        for kill_after in (*kills, None):
            typed = [sys.executable, "-c", KILLED, str(tmp_path / name), str(data)]
            process = subprocess.Popen(typed, stdout=subprocess.PIPE, start_new_session=True, text=True)
            assert process.stdout is not None
            for count, line in enumerate(process.stdout):
                begun += [int(line)] if count == 0 else []
                if count == kill_after:
                    os.killpg(process.pid, signal.SIGKILL)
                    break
            process.stdout.close()
            assert process.wait() == (0 if kill_after is None else -signal.SIGKILL)
        finished.append(load_file(tmp_path / name / "model.safetensors"))
        finished.append(json.loads((tmp_path / name / "config.json").read_text()))
    assert begun[:2] == [1, 1]
    assert 1 < begun[2] < begun[3]
    assert finished[1] == finished[3]
    assert all(torch.equal(tensor, finished[2][key]) for key, tensor in finished[0].items())
