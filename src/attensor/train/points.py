"""Training of pointer networks on points of the plane, on the one loop; scores of answers that were decoded."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.data.points import Instances, PointBatches, Task, draw_instances
from attensor.metrics.polygons import answer_scores
from attensor.models.pointing import PointerNetwork, Seq2SeqBaselines
from attensor.models.pointing.pointing import Pointing, pointing_loss
from attensor.nn._shapes import check_range, check_sizes
from attensor.ops._checks import checked
from attensor.train.loop import TrainConfig
from attensor.train.setups import PointSetup

__all__ = ["PointTraining", "build", "scores_of"]

_AT_ONCE = 256  # sets that are decoded together
HEADLINE = {"hull": "accuracy", "tsp": "length", "delaunay": "coverage"}


@checked
def build(setup: PointSetup) -> Pointing:
    """The model, drawn by the setup's seed.

    Raises:
        ValueError: a number of the setup out of its range.
    """
    check_sizes(setup, seed=-(2**63))
    check_range(setup, 3, sizes=setup.sizes)
    check_range(setup, above=0, learning_rate=setup.learning_rate, init_range=setup.init_range)
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
        shuffled: triangles of an answer in no order.
    """

    @checked
    def __init__(self, setup: PointSetup, *, shuffled: bool = False) -> None:
        self.setup = setup
        self.model = build(setup)
        self.batch = PointBatches(
            setup.task,
            setup.sizes,
            instances=setup.instances,
            batch_size=setup.batch_size,
            seed=setup.seed,
            shuffled=shuffled,
        )
        self._held_out = {
            size: draw_instances(setup.task, setup.held_out, size, seed=setup.seed, stream=-1) for size in setup.sizes
        }
        self.scores: dict[int, dict[str, float]] = {}  # of the last evaluation, by size

    @property
    def config(self) -> TrainConfig:
        """For the loop."""
        steps, rate = self.setup.steps, self.setup.learning_rate
        return TrainConfig(steps, rate, warmup_fraction=0.02, final_factor=0.02, clip_norm=2.0, evaluations=10)

    def loss(self, model: Pointing, batch: Instances) -> Tensor:
        """Mean negative log-likelihood of a choice, in nats."""
        return pointing_loss(model(batch.points, batch.targets, batch.counts), batch.targets)

    def optimizer(self, model: Pointing, learning_rate: float) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(model.parameters(), lr=learning_rate)

    def evaluate(self, model: Pointing) -> float:
        """The task's first score, mean over the sizes; all of them are in `scores`."""
        self.scores = {
            size: scores_of(model, held_out, self.setup.task, width=self.setup.width)
            for size, held_out in self._held_out.items()
        }
        name = HEADLINE[self.setup.task]
        return sum(found[name] for found in self.scores.values()) / len(self.scores)


@torch.no_grad()
@checked
def scores_of(
    model: Pointing, instances: Instances, task: Task, *, width: int = 1, constrained: bool = True
) -> dict[str, float]:
    """Decode all sets and compare with their answers: see `attensor.metrics.polygons.answer_scores`."""
    answers: list[list[int]] = []
    for start in range(0, len(instances), _AT_ONCE):
        rows = instances.rows(torch.arange(start, min(start + _AT_ONCE, len(instances))))
        found = model.decode(rows.points, rows.counts, width=width, constraint=task if constrained else "none")
        answers += found.best.tolist()
    points = [one[:count] for one, count in zip(instances.points, instances.counts.tolist())]
    return answer_scores(task, points, answers, instances.targets.tolist())
