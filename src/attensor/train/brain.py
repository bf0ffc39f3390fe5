"""Training a Tensor Brain: what is seen, what is known in general, and episodes, by one sum of cross-entropies.

Source: arXiv:2109.13392: teacher forcing for the feedback "sample", the expectation for "attention"; Adam.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from attensor.data.files import generator
from attensor.data.scenes import SceneData
from attensor.models.knowledge.tensor_brain import TensorBrain
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked, checked_fields
from attensor.train.loop import Progress, TrainConfig, train

__all__ = ["BrainTraining", "perception", "recalled", "train_brain"]


@checked_fields
@dataclass(frozen=True)
class BrainTraining:
    """How a Tensor Brain is trained.

    Attributes:
        steps: of the optimizer.
        batch_size: triples of each part.
        learning_rate: peak, of Adam.
        perceive, remember: learn from scenes; learn what holds of a subject.
        seed: of the batches.
    """

    steps: int = 1500
    batch_size: int = 256
    learning_rate: float = 3e-3
    perceive: bool = True
    remember: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what nothing can be trained with.

        Raises:
            ValueError: a number out of its range.
        """
        check_range(self, 1, steps=self.steps, batch_size=self.batch_size)
        check_range(self, above=0, learning_rate=self.learning_rate)


@checked
def train_brain(
    model: TensorBrain,
    triples: Tensor,
    scenes: SceneData,
    how: BrainTraining,
    *,
    held_out: Tensor,
    episodes: Tensor | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[Progress], bool] = lambda progress: True,
) -> Progress:
    """Train in place; the curve is the share of held-out scenes whose predicate is the first.

    Args:
        model: initialised.
        triples: int64 [M, 3], what is learned from.
        scenes: how they are seen.
        how: see there.
        held_out: [M', 3] for the curve.
        episodes: [T, 3], what was at each of the model's times; None learns none.
        checkpoint, on_step: as of `train`.
    Raises:
        Diverged, Stopped: see `train`.
    """
    lessons = _Lessons(triples, scenes, how, held_out, episodes)
    config = TrainConfig(how.steps, how.learning_rate, warmup_fraction=0.02, clip_norm=None, evaluations=5)
    return train(
        model, lessons.batch, lessons.loss, config, evaluate=lessons.score, checkpoint=checkpoint, optimizer=_adam,
        on_step=on_step,
    )  # fmt: skip


@dataclass(frozen=True)
class _Lessons:
    """What a Tensor Brain learns from, see `train_brain`."""

    triples: Tensor
    scenes: SceneData
    how: BrainTraining
    held_out: Tensor
    episodes: Tensor | None

    def batch(self, step: int) -> tuple[int, Tensor, Tensor]:
        """The step, and places among the triples and among the episodes."""
        random = generator(self.how.seed, step)
        counts = len(self.triples), 0 if self.episodes is None else len(self.episodes)
        seen, past = (torch.randint(max(1, n), (min(self.how.batch_size, n),), generator=random) for n in counts)
        return step, seen, past

    def loss(self, model: nn.Module, batch: tuple[int, Tensor, Tensor]) -> Tensor:
        """Sum over what is perceived, remembered and recalled."""
        assert isinstance(model, TensorBrain)  # noqa: S101
        step, seen, past = batch
        told = []
        right = self.scenes.truth(self.triples[seen])
        if self.how.perceive:
            told.append(model.perceive(*self.scenes.features(self.triples[seen], step), truth=right).loss(right))
        if self.how.remember:
            told.append(model.remember(self.triples[seen, 0], truth=right).loss(_without(right, "subject")))
        if self.episodes is not None:
            right = _without(self.scenes.truth(self.episodes[past]), "class")
            told.append(model.recall(past, truth=right).loss(right))
        return torch.stack(told).sum()

    def score(self, model: nn.Module) -> float:
        """Share of held-out scenes whose predicate is the first; 0 where scenes are not learned from."""
        assert isinstance(model, TensorBrain)  # noqa: S101
        return perception(model, self.held_out, self.scenes)["predicate@1"] if self.how.perceive else 0.0


@torch.no_grad()
def perception(model: TensorBrain, triples: Tensor, scenes: SceneData, *, step: int = -1) -> dict[str, float]:
    """Share of scenes in which each window's right symbol is the first, and the predicate among the first ten.

    Args:
        model: trained.
        triples: [M, 3], not those of the training.
        scenes: how they are seen.
        step: number of the noise, negative.
    Returns:
        "subject@1", "object@1", "predicate@1", "predicate@10" and, where there are classes, "class@1"; also how much
        feedback differs between scenes, "spread subject" and "spread object".
    """
    decoded = model.perceive(
        *scenes.features(triples, step), generator=torch.Generator().manual_seed(1 - step)
    )  # fmt: skip
    found = {}
    for window, right in scenes.truth(triples).items():
        best = decoded[window].scores.topk(min(10, decoded[window].scores.shape[-1]), -1).indices == right[:, None]
        found[f"{window}@1"] = best[:, 0].double().mean().item()
        if window == "predicate":
            found["predicate@10"] = best.any(-1).double().mean().item()
    return found | {f"spread {window}": decoded.feedback_spread(window) for window in ("subject", "object")}


@torch.no_grad()
def recalled(model: TensorBrain, episodes: Tensor) -> dict[str, float]:
    """Share of episodes whose subject, object, predicate, and all three, are recalled from the time alone."""
    decoded = model.recall(torch.arange(len(episodes)), generator=torch.Generator().manual_seed(0))
    places = {"subject": 0, "predicate": 1, "object": 2}
    right = {w: decoded[w].scores.argmax(-1) == episodes[:, place] for w, place in places.items()}
    right["triple"] = right["subject"] & right["predicate"] & right["object"]
    return {window: share.double().mean().item() for window, share in right.items()}


def _without(right: dict[str, Tensor], window: str) -> dict[str, Tensor]:
    return {name: index for name, index in right.items() if name != window}


def _adam(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
