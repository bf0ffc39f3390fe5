"""What a trial of a swap tells while it runs, and what it keeps, so that an interrupted one can go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from attensor.edit.align import Alignment

__all__ = ["Journal"]


class Journal:
    """Tells nothing and keeps scores until it is forgotten; a subclass shows them, and writes them to files.

    Any method may raise `attensor.errors.Stopped` to end the trial.

    Attributes:
        scores: name of a score -> one number for each unit of the task; a score that is here is not measured again.
        expected: scores that the whole trial will need.
    """

    def __init__(self) -> None:
        self.scores: dict[str, list[float]] = {}
        self.expected = 0

    def begin(self, text: str, training: str | None = None) -> None:
        """A stage begins.

        Args:
            text: what it is.
            training: the name under which `stepped` keeps what is trained in it, and `recall` finds it.
        """

    def scored(self, name: str, units: list[float]) -> None:
        """A score was measured."""
        self.scores[name] = units

    def stepped(
        self,
        text: str,
        share: float,
        trained: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        found: Alignment | None = None,
    ) -> None:
        """A step of a training is done.

        Args:
            text: how far it is.
            share: of the whole training, from 0 to 1.
            trained, optimizer, found: what the training needs to go on; None where it cannot.
        """

    def recall(self, trained: nn.Module, optimizer: torch.optim.Optimizer, found: Alignment) -> None:
        """Put what was kept of an interrupted training into all three; nothing if there is nothing."""
