"""The frame of commands that train a small model of their own: progress, interruption, a folder that goes on."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from attensor.errors import Diverged, Stopped
from attensor.files import locked, user_path

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from attensor.lab.interruption import Interruption
    from attensor.lab.step_display import StepDisplay
    from attensor.train.loop import Progress, TrainConfig
    from attensor.train.run_folder import RunFolder

__all__ = ["INTERRUPTED", "Training", "asked_of", "carry_out", "say", "unfinished"]

INTERRUPTED = 130


class Training(Protocol):
    """What is trained, on what, and how it is scored."""

    @property
    def model(self) -> nn.Module:
        """In training."""

    def batch(self, step: int, /) -> Any:
        """Of a step."""

    def loss(self, model: nn.Module, batch: Any, /) -> Tensor:
        """To be minimised."""

    def optimizer(self, model: nn.Module, learning_rate: float, /) -> torch.optim.Optimizer:
        """With the peak rate."""

    def evaluate(self, model: nn.Module, /) -> float:
        """The first score."""


def asked_of(options: Any) -> dict[str, Any]:
    """What decides a run: all options but where it is kept."""
    return {name: value for name, value in dataclasses.asdict(options).items() if name != "out"}


def unfinished(options: Any, console: Console) -> RunFolder | None:
    """The folder of the run that was asked for; None, after saying so, if it is finished.

    Raises:
        ValueError: the folder holds another run, or something else.
    """
    from attensor.train.run_folder import RunFolder

    folder = RunFolder(user_path(options.out, "--out"))
    folder.check(asked_of(options))
    if not folder.is_finished:
        return folder
    say(console, f"{folder.path} is finished: give another --out to train anew.")
    return None


def carry_out(
    training: Training, config: TrainConfig, folder: RunFolder, console: Console, *, units: int, unit: str,
    words: Callable[[], str],
) -> Progress | int:  # fmt: skip
    """Train, and show how it goes.

    Args:
        training: what.
        config: how.
        folder: of the run, begun.
        console: to write to.
        units: how many of `unit` a step takes.
        unit: what is counted, in the plural.
        words: the latest scores.
    Returns:
        Where the run is at its end; or a code to exit with, after saying why.
    """
    from attensor.lab.interruption import Interruption
    from attensor.lab.step_display import StepDisplay
    from attensor.train.loop import train

    parameters = sum(x.numel() for x in training.model.parameters())
    say(console, f"{parameters:,} parameters, {config.steps} steps of {units}: {folder.path}")
    with (
        locked(folder.path),
        Interruption().listening() as interruption,
        StepDisplay(config.steps, units=units, unit=unit, console=console) as display,
    ):
        watch = _Watch(display, interruption, words)
        try:
            return train(
                training.model, training.batch, training.loss, config, evaluate=training.evaluate,
                checkpoint=folder.checkpoint, optimizer=training.optimizer, on_step=watch.on_step,
            )  # fmt: skip
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
    words: Callable[[], str]

    def on_step(self, progress: Progress) -> bool:
        """Whether the training goes on."""
        is_scored = bool(progress.curve) and progress.curve[-1].step == progress.step
        self.display.step(progress.step, self.words() if is_scored else "")
        return not self.interruption.requested


def say(console: Console, text: str) -> None:
    """A line as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
