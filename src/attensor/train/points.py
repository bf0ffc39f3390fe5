"""Training of pointer networks on points of the plane, on the one loop; scores of answers that were decoded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attensor.data.points import Instances, PointBatches, Task, draw_instances
from attensor.metrics.polygons import answer_scores
from attensor.models.pointing import PointerNetwork, Seq2SeqBaselines
from attensor.models.pointing.pointing import Pointing, pointing_loss
from attensor.train.loop import TrainConfig

__all__ = ["PointSetup", "PointTraining", "build", "scores_of"]

_AT_ONCE = 256  # sets that are decoded together
HEADLINE = {"hull": "accuracy", "tsp": "length", "delaunay": "coverage"}


@dataclass(frozen=True, kw_only=True)
class PointSetup:
    """What decides the numbers of a run, beside the machine and its threads.

    Attributes:
        task: `"hull"`, `"tsp"` or `"delaunay"`.
        sizes: numbers of points of the training sets.
        model: `"pointer"`, or `"attention"` and `"plain"`, the baselines, whose vocabulary ends with the largest size.
        hidden_size: units of the LSTMs.
        steps: of the optimizer.
        batch_size: sets of a step, all of one size.
        instances: training sets of each size.
        held_out: sets of each size that are scored.
        learning_rate: peak of Adam's, which falls along a half cosine.
        init_range: of the parameters; None: as suits points of the unit square.
        width: beams of the scores.
        seed: of everything.
        shuffled: triangles in no order.
    """

    task: Task
    sizes: tuple[int, ...]
    model: str = "pointer"
    hidden_size: int = 128
    steps: int = 4000
    batch_size: int = 64
    instances: int = 6000
    held_out: int = 200
    learning_rate: float = 3e-3
    init_range: float | None = None
    width: int = 1
    seed: int = 0
    shuffled: bool = False

    @property
    def config(self) -> TrainConfig:
        """For the loop."""
        return TrainConfig(
            self.steps, self.learning_rate, warmup_fraction=0.02, final_factor=0.02, clip_norm=2.0, evaluations=10
        )


def build(setup: PointSetup) -> Pointing:
    """The model, drawn by the setup's seed."""
    torch.manual_seed(setup.seed)
    if setup.model == "pointer":
        return PointerNetwork(setup.hidden_size, init_range=setup.init_range)
    return Seq2SeqBaselines(
        setup.hidden_size, max(setup.sizes), attention=setup.model == "attention", init_range=setup.init_range
    )


class PointTraining:
    """Batches, loss and scores for `attensor.train.train`.

    Args:
        setup: what decides the numbers; all sets are drawn and answered here, which takes seconds.
    """

    def __init__(self, setup: PointSetup) -> None:
        self.setup = setup
        self.model = build(setup)
        self.batch = PointBatches(
            setup.task,
            setup.sizes,
            instances=setup.instances,
            batch_size=setup.batch_size,
            seed=setup.seed,
            shuffled=setup.shuffled,
        )
        self._held_out = {
            size: draw_instances(setup.task, setup.held_out, size, seed=setup.seed, stream=-1) for size in setup.sizes
        }
        self.scores: dict[int, dict[str, float]] = {}  # of the last evaluation, by size

    def loss(self, model: nn.Module, batch: Instances) -> Tensor:
        """Mean negative log-likelihood of a choice, in nats."""
        return pointing_loss(model(batch.points, batch.targets, batch.counts), batch.targets)

    def optimizer(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(model.parameters(), lr=learning_rate)

    def evaluate(self, model: nn.Module) -> float:
        """The task's first score, mean over the sizes; all of them are in `scores`."""
        self.scores = {
            size: scores_of(model, held_out, self.setup.task, width=self.setup.width)
            for size, held_out in self._held_out.items()
        }
        name = HEADLINE[self.setup.task]
        return sum(found[name] for found in self.scores.values()) / len(self.scores)


@torch.no_grad()
def scores_of(
    model: nn.Module, instances: Instances, task: Task, *, width: int = 1, constrained: bool = True
) -> dict[str, float]:
    """Decode all sets and compare with their answers: see `attensor.metrics.polygons.answer_scores`."""
    assert isinstance(model, Pointing)  # noqa: S101
    answers: list[list[int]] = []
    for start in range(0, len(instances), _AT_ONCE):
        rows = instances.rows(torch.arange(start, min(start + _AT_ONCE, len(instances))))
        found = model.decode(rows.points, rows.counts, width=width, constraint=task if constrained else "none")
        answers += found.best.tolist()
    points = [one[:count] for one, count in zip(instances.points, instances.counts.tolist())]
    return answer_scores(task, points, answers, instances.targets.tolist())
