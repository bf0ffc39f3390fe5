"""A model before a task, with some layers of an arm in it; every score is measured once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attensor.edit.journal import Journal
from attensor.edit.task import Task
from attensor.sites import AttentionSite

__all__ = ["Court", "Score"]


@dataclass(frozen=True)
class Score:
    """How good a model is.

    Attributes:
        value: the mean over the task's units.
        worse: by how much it is worse than the original, the mean of the paired differences.
        interval: half the width of the 95 % interval of that.
    """

    value: float
    worse: float = 0.0
    interval: float = 0.0


class Court:
    """A model, its task and its attentions.

    Args:
        model: in its original form.
        task: what it is good for.
        sites: attentions that arms replace.
        journal: holds scores that were measured, and receives new ones.
    """

    def __init__(self, model: nn.Module, task: Task, sites: Sequence[AttentionSite], journal: Journal) -> None:
        self.model, self.task, self.sites, self.journal = model, task, sites, journal
        self.sign = -1.0 if task.higher_is_better else 1.0
        self.base = self.measured("original")

    def measured(self, name: str) -> Tensor:
        """The task's score of each unit with the model as it stands now, or as it is known under that name."""
        if name not in self.journal.scores:
            self.journal.scored(name, self.task.score(self.model).tolist())
        return torch.tensor(self.journal.scores[name])

    def units(
        self, stage: str, arm: str, layers: Mapping[str, nn.Module], which: Sequence[int] | None = None
    ) -> Tensor:
        """The score of each unit with an arm's layers in the places `which`, all if None."""
        places = sorted(range(len(self.sites)) if which is None else which)
        name = f"{stage}: {arm}, {','.join(map(str, places))}"
        if name in self.journal.scores:
            return self.measured(name)
        sites = [self.sites[i] for i in places]
        try:
            for site in sites:
                site.replace(layers[site.name])
            return self.measured(name)
        finally:
            for site in sites:
                site.restore()

    def compared(self, units: Tensor, base: Tensor | None = None) -> Score:
        """A score beside that of the original, or another."""
        worse = self.sign * (units - (self.base if base is None else base)).double()
        spread = 1.96 * float(worse.std()) / math.sqrt(len(worse)) if len(worse) > 1 else math.inf
        return Score(float(units.double().mean()), float(worse.mean()), spread)
