"""The folder of a swap on trial, and what the terminal shows of it.

run.json             what the run was asked for; --resume goes on only with the same
scores.json          every score that was measured, number by number
aligned.safetensors  layers and optimizer of the alignment, until the run is finished; of a distillation
                     distilled-control.safetensors and distilled.safetensors
trial.json           what was found, written last
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import nn

from attensor.edit.align import Alignment
from attensor.edit.journal import Journal
from attensor.errors import Stopped
from attensor.files import read_json, write_json
from attensor.lab.display import clock
from attensor.lab.interruption import Interruption
from attensor.train.checkpoint import load_checkpoint, save_checkpoint
from attensor.train.run_folder import RunFolder

__all__ = ["SwapFolder", "SwapJournal"]

_LINE_SECONDS, _KEEP_SECONDS = 20.0, 120.0
_KEPT = ("steps", "seconds", "errors")
_TRAININGS = ("aligned", "distilled-control", "distilled")


class SwapFolder(RunFolder):
    """Files of one swap.

    Args:
        path: the folder; made when the run begins.
    """

    last_name = "trial.json"
    others: ClassVar[Mapping[str, str]] = {"model": "the model is another", "text": "the text is another"}

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.scores, self.numbers = path / "scores.json", path / self.last_name

    def open(self, *, is_resumed: bool) -> None:
        """Refuse a folder in which nothing can begin, or go on.

        Raises:
            ValueError: names the folder and the repair.
        """
        kept = self.kept()
        if self.is_finished:
            raise ValueError(f"--out {self.path}: holds a finished swap; give another folder.")
        if is_resumed and kept is None:
            raise ValueError(f"--out {self.path}: there is no interrupted swap; leave out --resume to begin one.")
        if kept is not None and not is_resumed:
            raise ValueError(
                f"--out {self.path}: holds a swap that was interrupted; add --resume to go on, or give another folder."
            )

    def prepare(self, asked: Mapping[str, Any]) -> None:
        """Make the folder, or compare the request with that of the run in it.

        Raises:
            ValueError: another request; names the first option that differs. OSError: the folder cannot be written.
        """
        self.check(asked)
        self._asked = asked
        self.make()

    def keep_request(self) -> None:
        """Note what the run was asked for, once it is sure that it can be done."""
        if self.kept() is None:
            self.begin(self._asked, {})

    def checkpoint_of(self, training: str) -> Path:
        """Where a training of that name is kept."""
        return self.path / f"{training}.safetensors"

    def finish(self) -> None:
        """Remove what only an unfinished run needs."""
        for training in _TRAININGS:
            self.checkpoint_of(training).unlink(missing_ok=True)


class SwapJournal(Journal):
    """Shows stages, a bar or lines in a pipe, and the time left; keeps scores and trainings in the folder.

    Args:
        folder: of the run.
        console: where to show.
        interruption: asked after each step and score; a stop is `Stopped`, when all is kept.
    """

    def __init__(self, folder: SwapFolder, console: Console, interruption: Interruption) -> None:
        super().__init__()
        self._folder, self._console, self._interruption = folder, console, interruption
        self.scores = read_json(folder.scores) or {}
        columns = (TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.fields[state]}"))
        self._bar = Progress(*columns, console=console, expand=True)
        self._task = self._bar.add_task("", total=1.0, state="")
        self._started = self._said = self._kept = time.monotonic()
        self._took: list[float] = []  # seconds of each score
        self._training = _TRAININGS[0]

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line, above the bar if there is one."""
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, text: str, training: str | None = None) -> None:
        """A stage begins; before the first the request is kept."""
        self._folder.keep_request()
        self._training = training or self._training
        self._started = time.monotonic()
        self._bar.update(self._task, description="", completed=0.0, state="")
        self.say(f"{text} ..")

    def scored(self, name: str, units: list[float]) -> None:
        """A score was measured: it is kept at once."""
        super().scored(name, units)
        write_json(self._folder.scores, self.scores)
        now = time.monotonic()
        self._took.append(now - self._started)
        self._started = now
        done, left = len(self.scores), max(0, self.expected - len(self.scores))
        seconds = left * sum(self._took) / len(self._took)
        self._show("scores", done / max(done, self.expected), f"{done}/{self.expected}, about {clock(seconds)} left")

    def stepped(
        self,
        text: str,
        share: float,
        trained: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        found: Alignment | None = None,
    ) -> None:
        """A step of a training is done; it is kept every two minutes, at a stop and at its end."""
        now = time.monotonic()
        is_due = self._interruption.requested or share >= 1 or now - self._kept > _KEEP_SECONDS
        if trained is not None and optimizer is not None and found is not None and is_due:
            state = {name: getattr(found, name) for name in _KEPT}
            save_checkpoint(self._folder.checkpoint_of(self._training), trained, optimizer, state)
            self._kept = now
        left = (now - self._started) * (1 - share) / max(share, 1e-9)
        self._show("training", share, f"{text}, about {clock(left)} left")

    def recall(self, trained: nn.Module, optimizer: torch.optim.Optimizer, found: Alignment) -> None:
        """Go on with the training that the folder holds, if it does."""
        kept = self._folder.checkpoint_of(self._training)
        if not kept.exists():
            return
        for name, value in load_checkpoint(kept, trained, optimizer).items():
            setattr(found, name, value)
        self.say(f"{found.steps} steps, {clock(found.seconds)}, are done already.")

    def _show(self, what: str, share: float, state: str) -> None:
        if self._console.is_terminal:
            self._bar.update(self._task, description=what, completed=share, state=state)
        elif time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            self.say(f"{what}: {state}")
        if self._interruption.requested:
            raise Stopped("stopped")
