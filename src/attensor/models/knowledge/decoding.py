"""What a decode gives: windows in their order, each with its scores, its choice, and what was fed back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Decoded", "Step"]


@dataclass(frozen=True)
class Step:
    """One scoring of a group of symbols.

    Attributes:
        window: "time", "scene", "subject", a unary group, "object" or "predicate".
        group: whose columns were scored.
        state: [B, D], q before it.
        scores: [B, K of the group].
        chosen: [B], the symbol that was told, drawn, or has the highest score.
        feedback: [B, D], what was then added to q; None where nothing is.
    """

    window: str
    group: str
    state: Tensor
    scores: Tensor
    chosen: Tensor
    feedback: Tensor | None


@dataclass(frozen=True)
class Decoded:
    """The steps of one decode, in order.

    Attributes:
        steps: see there.
        beta: inverse temperature of the choices.
    """

    steps: tuple[Step, ...]
    beta: float

    def __getitem__(self, window: str) -> Step:
        """The step of a window.

        Raises:
            KeyError: it is not part of this decode.
        """
        for step in self.steps:
            if step.window == window:
                return step
        raise KeyError(f"{window!r} was not decoded; there are {', '.join(step.window for step in self.steps)}.")

    @property
    def logits(self) -> Tensor:
        """All scores side by side, times beta: [B, sum of the groups]."""
        return torch.cat([self.beta * step.scores for step in self.steps], -1)

    def probabilities(self, window: str) -> Tensor:
        """P(k) of a window's symbols: [B, K of the group]."""
        return (self.beta * self[window].scores).softmax(-1)

    def feedback_spread(self, window: str) -> float:
        """Mean size of what feedback differs by in a batch, over its mean size; near 0 it says nothing of the input."""
        fed = self[window].feedback
        if fed is None:
            return 0.0
        return float((fed - fed.mean(0)).norm(dim=-1).mean() / fed.norm(dim=-1).mean().clamp(min=1e-30))

    def loss(self, truth: Mapping[str, Tensor]) -> Tensor:
        """Sum over the windows in `truth` of the mean cross-entropy: -log P(s) - log P(c) - log P(o) - log P(p).

        Args:
            truth: window -> [B] right symbols of its group, -100 where there is none.
        Returns:
            [], in nats.
        """
        told = [F.cross_entropy(self.beta * self[window].scores, right) for window, right in truth.items()]
        return torch.stack(told).sum()
