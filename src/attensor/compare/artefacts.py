"""What the stages of a mechanism leave in its folder, one JSON file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from attensor.files import DamagedFileError, read_json, write_json
from attensor.lab import kept

__all__ = ["Artefact", "Balance", "Measured", "Pace", "Pilot", "SeedRun"]


class Artefact:
    """A dataclass that is a JSON file."""

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """What the file holds, or None when it is not there.

        Raises:
            DamagedFileError: it holds something else.
        """
        found = read_json(path)
        return None if found is None else cls._of(found, path)

    @classmethod
    def kept(cls, path: Path, make: Callable[[], Self]) -> Self:
        """What the file holds; made and written first if it is not there."""
        return cls._of(kept(path, lambda: asdict(make())), path)  # type: ignore[call-overload]

    @classmethod
    def _of(cls, found: Any, path: Path) -> Self:
        try:
            return cls(**found)
        except TypeError as error:
            raise DamagedFileError(path, f"it is no {cls.__name__}") from error

    def save(self, path: Path) -> None:
        """Write the file."""
        write_json(path, asdict(self))  # type: ignore[call-overload]


@dataclass(frozen=True)
class Balance(Artefact):
    """The MLP's width that gives the model as many parameters as the reference has."""

    mlp_hidden_size: int
    parameters: int
    reference_parameters: int


@dataclass(frozen=True)
class Pace(Artefact):
    """Seconds of a training step on a machine with nothing else to do, and the steps of a seed and of a pilot."""

    seconds_per_step: float
    steps: int
    pilot_steps: int


@dataclass(frozen=True)
class Pilot(Artefact):
    """A short run with one learning rate; without a score it diverged, for a `reason`."""

    learning_rate: float
    steps: int
    score: float | None
    reason: str | None = None


@dataclass(frozen=True)
class SeedRun(Artefact):
    """A finished training: its curve (step, seconds, score, tokens), final scores at 1x to 4x, and the model's file."""

    seed: int
    learning_rate: float
    tokens_per_second: float
    curve: list[dict[str, float]]
    final: dict[str, float | None]
    checkpoint: str


@dataclass(frozen=True)
class Measured(Artefact):
    """Rows of the cost or the decoding; `stopped` says why there are not more, `finished` that there will not be."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None
    finished: bool = False
