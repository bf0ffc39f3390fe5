"""The frame of commands that train a small model of their own: progress, interruption, a folder that goes on."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from attensor.errors import Diverged, Stopped
from attensor.files import locked, user_path

if TYPE_CHECKING:
    from attensor.lab.interruption import Interruption
    from attensor.lab.step_display import StepDisplay
    from attensor.train.loop import Batch, Model, Progress, TrainConfig, Training
    from attensor.train.run_folder import RunFolder

__all__ = ["INTERRUPTED", "asked_of", "carry_out", "check_options", "say", "unfinished"]

INTERRUPTED = 130


def check_options(options: Any, least: float, *names: str, is_open: bool = False) -> None:
    """Refuse numbers of a command that are too small; None, where it is left out, never is.

    Args:
        options: the command.
        least: of the numbers; `is_open` leaves it out itself.
        names: of its fields.
    Raises:
        ValueError: the message names the option, its value and the least one.
    """
    for name in names:
        value = getattr(options, name)
        if value is None or ((least < value if is_open else least <= value) and value < float("inf")):
            continue
        bound = f"above {least}" if is_open else f"at least {least}"
        raise ValueError(f"--{name.replace('_', '-')} {value}: must be {bound}.")


def asked_of(options: Any, *, without: Collection[str] = (), **found: Any) -> dict[str, Any]:
    """What decides a run: all options but where it is kept, and those that are told in another form.

    Args:
        options: the command.
        without: fields that decide nothing by themselves, such as the path of data.
        found: what was found instead: the device, the data's fingerprint.
    """
    given = {name: value for name, value in dataclasses.asdict(options).items() if name not in {"out", *without}}
    return given | found


def unfinished(out: str, asked: Mapping[str, Any], console: Console) -> RunFolder | None:
    """The folder of the run that was asked for; None, after saying so, if it is finished.

    Raises:
        ValueError: the folder holds another run, or something else.
    """
    from attensor.train.run_folder import RunFolder

    folder = RunFolder(user_path(out, "--out"))
    folder.check(asked)
    if not folder.is_finished:
        return folder
    say(console, f"{folder.path} is finished: give another --out to train anew.")
    return None


def carry_out(
    training: Training[Model, Batch], config: TrainConfig, folder: RunFolder, console: Console, *, units: int,
    unit: str, words: Callable[[float], str],
) -> Progress | int:  # fmt: skip
    """Train, and show how it goes.

    Args:
        training: what.
        config: how.
        folder: of the run, begun.
        console: to write to.
        units: how many of `unit` a step takes.
        unit: what is counted, in the plural.
        words: what is said of a score, the latest.
    Returns:
        Where the run is at its end; or a code to exit with, after saying why.
    """
    from attensor.lab.interruption import Interruption
    from attensor.lab.step_display import StepDisplay
    from attensor.train.loop import run_training

    parameters = sum(x.numel() for x in training.model.parameters())
    say(console, f"{parameters:,} parameters, {config.steps} steps of {units}: {folder.path}")
    with (
        locked(folder.path),
        Interruption().listening() as interruption,
        StepDisplay(config.steps, units=units, unit=unit, console=console) as display,
    ):
        watch = _Watch(display, interruption, words)
        try:
            return run_training(training, config, checkpoint=folder.checkpoint, on_step=watch.on_step)
        except Stopped as stop:
            display.say(f"{str(stop).capitalize()}; the same command goes on.")
            return INTERRUPTED
        except Diverged as error:
            sys.stderr.write(f"attensor: {error}; try a smaller --learning-rate, in another --out.\n")
            return 2


@dataclass(frozen=True)
class _Watch:
    """Shows each step of a training, and ends it when the user asks for it."""

    display: StepDisplay
    interruption: Interruption
    words: Callable[[float], str]

    def on_step(self, progress: Progress) -> bool:
        """Whether the training goes on."""
        is_scored = bool(progress.curve) and progress.curve[-1].step == progress.step
        self.display.step(progress.step, self.words(progress.curve[-1].score) if is_scored else "")
        return not self.interruption.requested


def say(console: Console, text: str) -> None:
    """A line as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
