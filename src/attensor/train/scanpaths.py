"""Training of OAT on paths of gaze, on the one loop, and scores of the paths that it generates."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from attensor.data.gaze import Gaze, padded_paths
from attensor.metrics.scanpath import behaviour, delta, edit_distance, sequence_score
from attensor.models.pointing.oat import OAT, OATConfig
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked, checked_fields
from attensor.train.loop import TrainConfig

__all__ = ["ScanpathSetup", "ScanpathTraining", "ceiling", "compared", "scores_of"]

_AT_ONCE = 256  # scenes that are looked at together


@checked_fields
@dataclass(frozen=True, kw_only=True)
class ScanpathSetup:
    """What decides the numbers of a run beside the data, the machine and its threads.

    Attributes:
        config: sizes of the model.
        steps: of the optimizer.
        batch_size: paths of a step.
        learning_rate: peak of Adam's; it rises for a tenth of the steps and falls along a half cosine.
        samples: paths that are generated for each one that is held out.
        seed: of everything.
    """

    config: OATConfig = field(default_factory=lambda: OAT.presets["oat_generated"])
    steps: int = 1500
    batch_size: int = 32
    learning_rate: float = 2e-3
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what nothing can be trained with.

        Raises:
            ValueError: a number out of its range.
        """
        check_range(self, 1, steps=self.steps, batch_size=self.batch_size, samples=self.samples)
        check_range(self, above=0, learning_rate=self.learning_rate)

    @property
    def train_config(self) -> TrainConfig:
        """For the loop."""
        return TrainConfig(self.steps, self.learning_rate, final_factor=0.01, clip_norm=1.0, evaluations=10)


class ScanpathTraining:
    """Batches, loss and scores for `attensor.train.train`.

    Args:
        setup: what decides the numbers.
        train: to learn from.
        held_out: to be scored on.
    """

    @checked
    def __init__(self, setup: ScanpathSetup, train: Gaze, held_out: Gaze) -> None:
        self.setup, self._train, self._held_out = setup, train, held_out
        torch.manual_seed(setup.seed)
        self.model = OAT(setup.config)
        self.scores: dict[str, float] = {}  # of the last evaluation

    def batch(self, step: int) -> Gaze:
        """Paths of a step."""
        return self._train.batch(step, seed=self.setup.seed, batch_size=self.setup.batch_size)

    def loss(self, model: OAT, batch: Gaze) -> Tensor:
        """Cross-entropy of the next object or the end, in nats."""
        return model.loss(batch.scenes, batch.paths)

    def optimizer(self, model: OAT, learning_rate: float) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)

    def evaluate(self, model: OAT) -> float:
        """Mean sequence score of drawn paths; all scores are in `scores`."""
        self.scores = scores_of(model, self._held_out, samples=self.setup.samples, seed=self.setup.seed)
        return self.scores["score"]


@torch.no_grad()
@checked
def scores_of(model: OAT, gaze: Gaze, *, samples: int = 1, temperature: float = 1.0, seed: int = 0) -> dict[str, float]:
    """How paths that are drawn for each scene compare with people's.

    Returns:
        score, edit (see `attensor.metrics.scanpath`), delta, found (share of paths that end at the target), length, and
        where scenes were seen by two people their `ceiling`.
    """
    random, found = torch.Generator().manual_seed(seed), []
    for start in range(0, len(gaze), _AT_ONCE):
        scenes = gaze.scenes[slice(start, start + _AT_ONCE)]
        paths, _ = model.generate(scenes, samples=samples, temperature=temperature, generator=random)
        found += [path[path >= 0] for path in paths.flatten(0, 1)]
    return compared(found, gaze, samples)


def compared(found: list[Tensor], gaze: Gaze, samples: int = 1) -> dict[str, float]:
    """Scores of paths, `samples` for each of the scenes in turn, as of `scores_of`."""
    paths = padded_paths(found)
    people, target = gaze.paths.repeat_interleave(samples, 0), gaze.scenes.target.repeat_interleave(samples, 0)
    own = behaviour(paths, target).mean(0)
    scores = {
        "score": sequence_score(paths, people).mean().item(),
        "edit": edit_distance(paths, people).double().mean().item(),
        "delta": delta(paths, target, people, target),
        "found": own[0].item(),
        "length": own[1].item(),
    }
    most = ceiling(gaze)
    return scores if most is None else {**scores, "ceiling": most}


def ceiling(gaze: Gaze) -> float | None:
    """Mean sequence score of two people's paths over the same scene; None where no scene has two."""
    order = gaze.groups.argsort(stable=True)
    groups, paths = gaze.groups[order], gaze.paths[order]
    pairs = [torch.empty(0, dtype=torch.float64)]
    for apart in range(1, int(torch.bincount(groups).max())):
        same = groups[apart:] == groups[:-apart]
        pairs.append(sequence_score(paths[:-apart][same], paths[apart:][same]))
    scores = torch.cat(pairs)
    return scores.mean().item() if len(scores) else None
