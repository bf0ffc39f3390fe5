"""`attensor train image`: from what was asked for to a folder with a trained model, in as many sittings as it takes."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from attensor import models
from attensor.catalogue import cards, load
from attensor.compare.config import parse_budget
from attensor.data.image_source import ImageSource, open_image_source
from attensor.errors import Diverged, Stopped, need
from attensor.files import locked, read_json, user_path
from attensor.lab.interruption import Interruption
from attensor.lab.step_display import StepDisplay
from attensor.lab.worker import taking_kernels
from attensor.models.convert import read_weights
from attensor.models.vision.image_model import ImageModel
from attensor.ops import kernels_form
from attensor.train.devices import training_device
from attensor.train.image import ImageSetup, ImageTraining
from attensor.train.image_folder import ImageFolder
from attensor.train.image_recipe import ImageRecipe, find_recipe
from attensor.train.image_tasks import Classes, ImageTask, task_of
from attensor.train.loop import Progress

if TYPE_CHECKING:
    from attensor.commands.train_image import TrainImage

__all__ = ["steps_within", "train_image"]

INTERRUPTED = 130
_MOST_IMAGES = {"cpu": 64, "cuda": 256}  # of a batch, if nobody says it
_MOST_EVALUATIONS = 10
_MOST_WORKERS = 8
_PILOT_STEPS = 6
_OF_THE_RECIPE = (
    *("weight_decay", "layer_decay", "ema", "clip_norm", "smoothing"),
    *("crop_scale", "flip", "rand_augment", "erasing", "mixup", "cutmix"),
)
_NO_NUMBERS = ("out", "workers", "data")  # options that decide no number, or are kept otherwise


def train_image(command: TrainImage, *, console: Console | None = None) -> int:
    """Train as `command` says, or go on with the run in its folder.

    Returns:
        0; 130 after Ctrl-C, 2 when the loss became infinite.
    Raises:
        DataError, ValueError, OSError: found before the training: data, options, the folder.
    """
    console = console or Console()
    folder = ImageFolder(user_path(command.out, "--out"))
    kept = folder.kept()
    task = _task(command.model)
    command = replace(command, recipe=command.recipe or task.recipe)
    recipe = _recipe(command)
    if recipe.views.needs_kornia:
        need("kornia", purpose=f"the recipe {command.recipe}")
    device = training_device(command.device)
    source = open_image_source(command.data, held_out=command.held_out)
    asked = _asked(command, source, device)
    folder.check(asked)
    if kept is not None and folder.is_finished:
        _say(console, f"{folder.path} is finished: give another --out to train anew.")
        return 0
    decided = kept["decided"] if kept else _decisions(command, device)
    torch.set_num_threads(decided["threads"])
    with taking_kernels(decided["kernels"]):
        training = _training(command, task, recipe, source, device, console)
        if kept is None:
            training = _with_steps(command, training)
            folder.begin(asked, decided | {"steps": training.setup.steps})
        else:
            training = _decided(command, training, decided["steps"])
            folder.load_curve(training)
        return _carry_out(command, training, folder, console)


def _decisions(command: TrainImage, device: torch.device) -> dict[str, Any]:
    """What else the last bits depend on: a run keeps it, whatever the machine has when it goes on."""
    threads = command.threads or torch.get_num_threads()
    return {"threads": threads, "kernels": kernels_form() if device.type == "cpu" else None}


def _carry_out(command: TrainImage, training: ImageTraining, folder: ImageFolder, console: Console) -> int:
    _say(console, _headline(command, training, folder))
    for note in training.source.notes:
        _say(console, note)
    setup = training.setup
    with (
        locked(folder.path),
        Interruption().listening() as interruption,
        StepDisplay(setup.steps, units=setup.images_per_step, console=console) as display,
    ):

        def on_step(progress: Progress) -> bool:
            scores = training.scores.get(progress.step)
            display.step(progress.step, "" if scores is None else str(scores))
            if scores is not None:
                folder.keep_curve(training)
            return not interruption.requested

        try:
            training.run(folder.checkpoint, on_step=on_step)
        except Stopped as stop:
            display.say(f"{str(stop).capitalize()}; the same command goes on.")
            return INTERRUPTED
        except Diverged as error:
            sys.stderr.write(f"attensor: {error}; try a smaller --learning-rate, in another --out.\n")
            return 2
    _conclude(command, training, folder, console)
    return 0


def _conclude(command: TrainImage, training: ImageTraining, folder: ImageFolder, console: Console) -> None:
    source, test = training.source, None
    if len(source.test):
        test = training.score(training.trained.eval(), source.test)
    folder.keep_curve(training)
    folder.keep_model(training, command.model, test)
    _say(console, f"Held out: {training.scores[max(training.scores)]}")
    if test is not None:
        _say(console, f"Test, scored once: {test}")
    for sentence in training.sentences():
        _say(console, sentence)
    size = training.setup.image_size
    options = training.task.options(source.classes) | {"img_size": size[0] if size[0] == size[1] else size}
    build = ", ".join(f"{name}={value!r}" for name, value in {**options, "pretrained": str(folder.path)}.items())
    _say(console, f"Model: attensor.models.create({command.model!r}, {build})")
    for words in _uses(command.model):
        _say(console, f"Also: attensor {words} --model {folder.path} (see attensor {words} --help)")


def _recipe(command: TrainImage) -> ImageRecipe:
    """The recipe with the options that were given; 0 takes away what a recipe may have or not."""
    options = {name: getattr(command, name) for name in _OF_THE_RECIPE}
    recipe = find_recipe(command.recipe or Classes.recipe)
    if command.ema == 0:
        recipe, options["ema"] = replace(recipe, ema=None), None
    if command.rand_augment == (0, 0):
        recipe = replace(recipe, views=replace(recipe.views, rand_augment=None))
        options["rand_augment"] = None
    if command.data == "digits" and command.flip is None:
        options["flip"] = 0.0  # a 2 in the mirror is none
    return recipe.with_options(**options)


def _asked(command: TrainImage, source: ImageSource, device: torch.device) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    options = {name: value for name, value in dataclasses.asdict(command).items() if name not in _NO_NUMBERS}
    return options | {"device": device.type, "data_fingerprint": source.fingerprint}


def _training(
    command: TrainImage,
    task: ImageTask,
    recipe: ImageRecipe,
    source: ImageSource,
    device: torch.device,
    console: Console,
) -> ImageTraining:
    """The model, and how it is trained; the number of steps is decided later."""
    torch.manual_seed(command.seed)
    model = models.create(
        command.model,
        pretrained=command.init,
        img_size=command.image_size or (task.digits_size if command.data == "digits" else None),
        drop_path_rate=command.drop_path,
        device=device,
        **task.options(source.classes),
    )
    if command.init is not None and isinstance(model, ImageModel):
        _announce_classifier(command.init, model, source.classes, console)
    most = min(_MOST_IMAGES[device.type], len(source.train))
    dtype = (
        torch.bfloat16 if command.dtype == "bfloat16" or (command.dtype == "auto" and device.type == "cuda") else None
    )
    setup = ImageSetup(
        recipe=recipe,
        image_size=_size_of(model),
        batch_size=command.batch_size or min(recipe.batch_size, most),
        steps=1,
        accumulate=command.accumulate,
        seed=command.seed,
        autocast=dtype,
    )
    training = ImageTraining(model, source, setup, workers=_workers(command, source), device=device)
    training.check()
    return training


def _task(name: str) -> ImageTask:
    """How the model of that name is trained; a model of the catalogue that is not trained on images is refused."""
    paths = [path for card in cards().values() if name in card.presets for path in card.models]
    kinds = [kind for kind in map(load, paths) if name in kind.presets]
    if not kinds:
        return Classes()  # `create` says what is wrong with the name
    task = task_of(kinds[0])
    if task is None:
        kind = kinds[0].__name__
        raise ValueError(f"--model {name}: is a {kind} and no model of images that this command trains.")
    return task


def _uses(name: str) -> list[str]:
    """Commands that take a trained model of that name."""
    return [
        words
        for card in cards().values()
        if name in card.presets
        for words in card.commands
        if words.startswith("solve ")
    ]


def _size_of(model: Any) -> tuple[int, int]:
    """Height and width that the model is built for."""
    height, width = model.config.image_size
    return height, width


def _announce_classifier(init: str, model: ImageModel, classes: tuple[str, ...], console: Console) -> None:
    """Say that the classifier starts anew, if the weights have one of another size or none, or is kept for others."""
    name = f"{model.classifier}.weight"
    theirs, own = model.convert_state_dict(read_weights(init)).get(name), model.state_dict()[name]
    if theirs is None or theirs.shape != own.shape:
        what = "no classifier" if theirs is None else f"a classifier of {theirs.shape[0]} classes"
        _say(console, f"{init} has {what}, the images have {own.shape[0]} classes: the classifier starts anew.")
        return
    names = (read_json(Path(init) / "config.json") or {}).get("classes", classes) if Path(init).is_dir() else classes
    if list(names) != list(classes):
        _say(
            console, f"{init} has a classifier of as many classes with other names: its weights are where this begins."
        )


def _workers(command: TrainImage, source: ImageSource) -> int:
    if command.workers is not None:
        return command.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_WORKERS, cores) if source.is_of_files else 0


def _with_steps(command: TrainImage, training: ImageTraining) -> ImageTraining:
    """As many steps as the epochs or the budget make."""
    epochs = command.epochs or training.setup.recipe.epochs
    if command.budget is not None:
        return _decided(command, training, steps_within(parse_budget(command.budget), training))
    return _decided(command, training, round(epochs * len(training.source.train) / training.setup.images_per_step))


def _decided(command: TrainImage, training: ImageTraining, steps: int) -> ImageTraining:
    """The training with so many steps: warm-up and curve in proportion."""
    setup, steps = training.setup, max(1, steps)
    recipe = setup.recipe
    epochs = steps * setup.images_per_step / len(training.source.train)
    warmup = command.warmup_epochs
    warmup = recipe.warmup_epochs * epochs / recipe.epochs if warmup is None else warmup
    recipe = replace(recipe, epochs=epochs, warmup_epochs=warmup)
    if command.learning_rate is not None:
        recipe = replace(recipe, learning_rate=command.learning_rate, batch_size=setup.images_per_step)
    points = command.evaluations or max(1, min(_MOST_EVALUATIONS, round(epochs), steps))
    return replace(training, setup=replace(setup, recipe=recipe, steps=steps, evaluations=points))


def steps_within(seconds: float, training: ImageTraining) -> int:
    """How many steps, with the evaluations, fit into the time: a few are done with a copy of the model.

    Args:
        seconds: for all of the training.
        training: its steps do not count.
    Returns:
        At least 1.
    """
    setup = replace(training.setup, steps=_PILOT_STEPS, evaluations=0)
    pilot = replace(training, model=copy.deepcopy(training.model), setup=setup, broken=set(), scores={})
    ends: list[float] = []

    def on_step(progress: Progress) -> bool:
        ends.append(time.perf_counter())
        return True

    pilot.run(on_step=on_step)
    a_step = statistics.median(after - before for before, after in itertools.pairwise(ends[1:]))
    started = time.perf_counter()
    few = training.source.held_out[: 4 * setup.batch_size]
    pilot.score(pilot.model.eval(), few)
    evaluation = (time.perf_counter() - started) * len(training.source.held_out) / len(few)
    # of a budget that evaluations would eat, half is for training
    left = max(seconds - _MOST_EVALUATIONS * evaluation, seconds / 2)
    return max(1, int(left / a_step))


def _headline(command: TrainImage, training: ImageTraining, folder: ImageFolder) -> str:
    source, setup = training.source, training.setup
    size = " x ".join(map(str, setup.image_size))
    return (
        f"{command.model} on {source.name}: {len(source.train)} images of {len(source.classes)} classes at {size}, "
        f"{len(source.held_out)} held out; {setup.recipe.epochs:.3g} epochs, {setup.steps} steps of "
        f"{setup.images_per_step}, learning rate {setup.learning_rate:.2g}, {training.workers} workers: {folder.path}"
    )


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
