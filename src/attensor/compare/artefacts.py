"""What the stages of a mechanism leave in its folder, one JSON file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from attensor.files import DamagedFileError, read_json, write_json
from attensor.lab import kept

__all__ = ["AT_WORK", "FAILED", "Artefact", "Balance", "Measured", "Pace", "Pilot", "References", "Schedule", "SeedRun"]

# in the folder of a run: the mechanism whose code is being measured, for whoever finds the process dead
AT_WORK = "at-work.txt"
# in the folder of a mechanism: why it could not be measured
FAILED = "failed-measure.json"


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
    """Seconds of a training step and of a seed's evaluations on a machine with nothing else to do, and its load.

    The load is the time that passed by the time that was not spent waiting for a processor: 1 on an idle machine.
    """

    seconds_per_step: float
    evaluation_seconds: float = 0.0
    machine_load: float = 1.0


@dataclass(frozen=True)
class Schedule(Artefact):
    """What all mechanisms of a run share: the steps of a seed, those of a pilot, and the seconds this should take."""

    steps: int
    pilot_steps: int
    expected_seconds: float


@dataclass(frozen=True)
class Pilot(Artefact):
    """The beginning of a run with one learning rate; without a score it diverged, for a `reason`."""

    learning_rate: float
    steps: int
    score: float | None
    reason: str | None = None


@dataclass(frozen=True)
class SeedRun(Artefact):
    """A finished training.

    Attributes:
        seed, learning_rate, steps: how.
        seconds_per_step: on an idle machine: without the waiting for a processor.
        machine_load: during the training, see `Pace`.
        tokens_per_second: with that waiting.
        curve: step, tokens, seconds, score on the selection.
        final: scores on the test at 1x, 2x and 4x.
        units: mean score of each unit of the test at 1x.
        checkpoint: the file of the averaged model, from the folder of the run.
    """

    seed: int
    learning_rate: float
    steps: int
    seconds_per_step: float
    machine_load: float
    tokens_per_second: float
    curve: list[dict[str, float]]
    final: dict[str, float | None]
    units: list[float]
    checkpoint: str


@dataclass(frozen=True)
class References(Artefact):
    """The reference rows of a run, as in results.json."""

    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Measured(Artefact):
    """Rows of the cost or the decoding; `stopped` says why there are not more, `finished` that there will not be.

    Where rows are pooled, `samples` keeps the single times of each.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None
    finished: bool = False
    samples: list[list[float]] = field(default_factory=list)
