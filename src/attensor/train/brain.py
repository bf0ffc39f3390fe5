"""Training a Tensor Brain: what is seen, what is known in general, and episodes, by one sum of cross-entropies.

Source: arXiv:2109.13392: teacher forcing for the feedback "sample", the expectation for "attention"; Adam.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attensor.data.files import generator
from attensor.data.scenes import SceneData
from attensor.models.knowledge.tensor_brain import TensorBrain
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked_fields
from attensor.train.loop import TrainConfig

__all__ = ["BrainSetup", "BrainTraining", "perception", "recalled"]


@checked_fields
@dataclass(frozen=True)
class BrainSetup:
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

    @property
    def config(self) -> TrainConfig:
        """For the loop."""
        return TrainConfig(self.steps, self.learning_rate, warmup_fraction=0.02, clip_norm=None, evaluations=5)


@dataclass(frozen=True)
class BrainTraining:
    """Batches, loss and scores of a Tensor Brain, for `attensor.train.run_training`.

    Attributes:
        model: initialised, on its device.
        triples: int64 [M, 3], what is learned from.
        scenes: how they are seen.
        setup: see there.
        held_out: [M', 3], of whose scenes the share is scored in which the predicate is the first.
        episodes: [T, 3], what was at each of the model's times; None learns none.
    """

    model: TensorBrain
    triples: Tensor
    scenes: SceneData
    setup: BrainSetup
    held_out: Tensor
    episodes: Tensor | None = None

    def batch(self, step: int) -> tuple[int, Tensor, Tensor]:
        """The step, and places among the triples and among the episodes."""
        random = generator(self.setup.seed, step)
        counts = len(self.triples), 0 if self.episodes is None else len(self.episodes)
        seen, past = (torch.randint(max(1, n), (min(self.setup.batch_size, n),), generator=random) for n in counts)
        return step, seen, past

    def loss(self, model: TensorBrain, batch: tuple[int, Tensor, Tensor]) -> Tensor:
        """Sum over what is perceived, remembered and recalled."""
        step, seen, past = batch
        told, device = [], model.A.device
        triples = self.triples[seen]
        right = _on(device, self.scenes.truth(triples))
        if self.setup.perceive:
            windows = (x.to(device) for x in self.scenes.features(triples, step))
            told.append(model.perceive(*windows, truth=right).loss(right))
        if self.setup.remember:
            told.append(model.remember(right["subject"], truth=right).loss(_without(right, "subject")))
        if self.episodes is not None:
            right = _without(_on(device, self.scenes.truth(self.episodes[past])), "class")
            told.append(model.recall(past.to(device), truth=right).loss(right))
        return torch.stack(told).sum()

    def optimizer(self, model: TensorBrain, learning_rate: float) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)

    def evaluate(self, model: TensorBrain) -> float:
        """Share of held-out scenes whose predicate is the first; 0 where scenes are not learned from."""
        return perception(model, self.held_out, self.scenes)["predicate@1"] if self.setup.perceive else 0.0


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
    device = model.A.device
    windows = (x.to(device) for x in scenes.features(triples, step))
    decoded = model.perceive(*windows, generator=torch.Generator(device).manual_seed(1 - step))
    found = {}
    for window, right in _on(device, scenes.truth(triples)).items():
        scores = decoded[window].scores
        best = scores.topk(min(10, scores.shape[-1]), -1).indices == right[:, None]
        found[f"{window}@1"] = best[:, 0].double().mean().item()
        if window == "predicate":
            found["predicate@10"] = best.any(-1).double().mean().item()
    return found | {f"spread {window}": decoded.feedback_spread(window) for window in ("subject", "object")}


@torch.no_grad()
def recalled(model: TensorBrain, episodes: Tensor) -> dict[str, float]:
    """Share of episodes whose subject, object, predicate, and all three, are recalled from the time alone."""
    device = model.A.device
    random = torch.Generator(device).manual_seed(0)
    decoded, episodes = model.recall(torch.arange(len(episodes), device=device), generator=random), episodes.to(device)
    places = {"subject": 0, "predicate": 1, "object": 2}
    right = {w: decoded[w].scores.argmax(-1) == episodes[:, place] for w, place in places.items()}
    right["triple"] = right["subject"] & right["predicate"] & right["object"]
    return {window: share.double().mean().item() for window, share in right.items()}


def _on(device: torch.device, right: dict[str, Tensor]) -> dict[str, Tensor]:
    return {window: index.to(device) for window, index in right.items()}


def _without(right: dict[str, Tensor], window: str) -> dict[str, Tensor]:
    return {name: index for name, index in right.items() if name != window}
