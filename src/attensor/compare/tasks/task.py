"""What a kind of data has to say: one file a kind, which owns its metric, units, sizes and model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from attensor.catalogue import Domain
from attensor.compare.references import Reference
from attensor.train.optimizer import adamw

if TYPE_CHECKING:
    from attensor.compare.config import CompareConfig
    from attensor.compare.plan import Plan

__all__ = ["Final", "Mixer", "Task", "doubled"]

Mixer = Callable[[int], nn.Module]


class Final(NamedTuple):
    """Scores on the test at 1x, 2x, 4x the training length, None where there is none; the mean of each unit at 1x."""

    scores: dict[str, float | None]
    units: list[float]


class Task(ABC):
    """Builds models, and says what they learn and how good they are.

    Attributes:
        kind: of the data it opens, as `attensor.data` calls it.
        domain: what its mixers mix.
        metric, lower_is_better: of the scores.
        units: what a mixer reads, in the plural.
        decodes: whether its models go on one token at a time.
        budget: seconds of training where nothing is said.
        facts: what results tell of its data, by attribute.
        final_cost: about how many evaluations for the curve take as long as the final one.
        sizes: size of the model -> (length in tokens or pixels a side, batch size).
    """

    kind: ClassVar[str]
    domain: ClassVar[Domain]
    metric: ClassVar[str]
    lower_is_better: ClassVar[bool]
    units: ClassVar[str]
    decodes: ClassVar[bool]
    budget: ClassVar[float]
    facts: ClassVar[tuple[str, ...]]
    final_cost: ClassVar[float]
    sizes: ClassVar[dict[str, tuple[int, int]]]

    tokens_per_step: int

    def __init__(self, plan: Plan, data: Any, run: Path | None = None) -> None:
        self._plan, self._data, self._run = plan, data, run

    @classmethod
    @abstractmethod
    def check(cls, data: Any) -> None:
        """Refuse data on which nothing can be learned.

        Raises:
            DataError: why.
        """

    @classmethod
    @abstractmethod
    def layout(cls, config: CompareConfig, data: Any, hidden_size: int) -> dict[str, Any]:
        """The plan's `length`, `batch_size`, `patch_size`, `counts` and `reference_mlp_size`."""

    @classmethod
    @abstractmethod
    def build(cls, plan: Plan, mixer: Mixer, mlp_hidden_size: int) -> nn.Module:
        """A model of the plan's size around `mixer`, on whatever device is the default; needs no data."""

    @classmethod
    @abstractmethod
    def spaces(cls, max_length: int) -> list[tuple[int, ...]]:
        """Ascending sizes of a mixer's input for the cost measurement."""

    @classmethod
    @abstractmethod
    def chance(cls, facts: dict[str, Any]) -> float:
        """The score of a guess that knows nothing of the data."""

    @classmethod
    @abstractmethod
    def test_units(cls, data: Any, length: int) -> dict[str, Any]:
        """`kind` of what the test consists of, and the `weights` of each in the score; they sum to 1."""

    @abstractmethod
    def batch(self, step: int, seed: int) -> Any:
        """Training data of one step: a pure function."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """What is minimised."""

    def optimizer(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """What trains `model`, with its peak rate."""
        return adamw(model, learning_rate)

    @abstractmethod
    def score(self, model: nn.Module) -> float:
        """Score on the selection, for the curve and the choice of the learning rate."""

    def prepare(self) -> None:
        """Make what all mechanisms of a run need and keep it in its folder; nothing, for most kinds of data."""
        return None

    @abstractmethod
    def references(self) -> list[Reference]:
        """Rows that are no models, scored as the models are on the test."""

    @abstractmethod
    def final(self, model: nn.Module) -> Final:
        """Scores on the test, which nothing else reads."""


def doubled(first: int, last: int) -> list[int]:
    """`first`, twice that, and so on, up to `last`; `last` alone when it is below `first`."""
    found = [min(first, last)]
    while 2 * found[-1] <= last:
        found.append(2 * found[-1])
    return found
