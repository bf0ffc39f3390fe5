"""`attensor train points`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from rich.console import Console

from attensor.commands.small_training import asked_of, carry_out, check_options, say, unfinished
from attensor.errors import need
from attensor.files import write_json
from attensor.train.setups import PointSetup

if TYPE_CHECKING:
    from attensor.train.points import PointTraining
    from attensor.train.run_folder import RunFolder

__all__ = ["TrainPoints"]


@dataclass(frozen=True, kw_only=True)
class TrainPoints(PointSetup):
    """Train a pointer network on points of the unit square: convex hulls, round tours or Delaunay triangulations.

    Answers are computed on the way: hulls and triangulations by scipy, tours exactly up to 12 cities. The same command
    goes on with a run that was interrupted, to the same numbers.
    """

    out: str = "pointer-network"
    """Folder of the run: checkpoint, curve, and at the end model.safetensors for attensor solve --model."""
    threads: int = 1
    """Threads of PyTorch; the last bits depend on it."""

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: the message names the option, its value and the repair.
        """
        check_options(self, 1, "hidden_size", "steps", "batch_size", "instances", "held_out", "width", "threads")
        check_options(self, 0, "learning_rate", "init_range", is_open=True)
        most = 12 if self.task == "tsp" else 1000
        if not self.sizes or min(self.sizes) < 3 or max(self.sizes) > most:
            reason = " (beyond, tours are not solved exactly)" if self.task == "tsp" else ""
            raise ValueError(f"--sizes {','.join(map(str, self.sizes))}: must be from 3 to {most}{reason}.")

    def run(self) -> int:
        """Train, show how it goes, and keep the model.

        Raises:
            ValueError, OSError: found before the training: options, the folder.
        """
        need("scipy", purpose="attensor train points")
        console = Console()
        folder = unfinished(self.out, asked_of(self), console)
        if folder is None:
            return 0
        import torch

        from attensor.train.points import PointTraining

        torch.set_num_threads(self.threads)
        sets = len(self.sizes) * (self.instances + self.held_out)
        say(console, f"{self.task}: {sets} sets of {min(self.sizes)} to {max(self.sizes)} points are drawn and solved")
        training = PointTraining(self)
        folder.begin(asked_of(self), {})
        return self._carry_out(training, folder, console)

    def _carry_out(self, training: PointTraining, folder: RunFolder, console: Console) -> int:
        progress = carry_out(
            training, training.config, folder, console, units=self.batch_size, unit="sets",
            words=lambda _: _words(training.scores),
        )  # fmt: skip
        if isinstance(progress, int):
            return progress
        self._conclude(training, folder, progress.curve, console)
        return 0

    def _conclude(self, training: PointTraining, folder: RunFolder, curve: list[Any], console: Console) -> None:
        from attensor.models.pointing.saved import save_pointing

        facts: dict[str, Any] = {"task": self.task, "sizes": list(self.sizes), "steps": self.steps, "seed": self.seed}
        facts["command"] = _command(self)
        save_pointing(training.model, folder.path / "model.safetensors", facts)
        training.evaluate(training.model.eval())
        points = [[point.step, point.score] for point in curve]
        write_json(folder.path / "config.json", {**facts, "held_out": _plain(training.scores), "curve": points})
        say(console, f"Held out: {_words(training.scores)}")
        say(console, f"Also: attensor solve {self.task} points.csv --model {folder.path} --out plot.html")


def _command(options: TrainPoints) -> str:
    """That makes the same model: what is not the default."""
    typed = ["attensor train points"]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name != "out" and value != field.default:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            typed.append(f"--{field.name.replace('_', '-')} {text}")
    return " ".join(typed)


def _words(scores: dict[int, dict[str, float]]) -> str:
    """Of each size, the first two scores."""
    parts = []
    for size, found in scores.items():
        named = [f"{name} {value:.3f}" for name, value in list(found.items())[:3]]
        parts.append(f"{size} points: {', '.join(named)}")
    return "; ".join(parts)


def _plain(scores: dict[int, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """As JSON has it: what is not a number is null."""
    return {
        str(size): {name: value if value == value else None for name, value in found.items()}
        for size, found in scores.items()
    }
