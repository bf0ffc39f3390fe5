"""Training scorers of triples: both directions, one question against all entities, ranks that are filtered.

    loss = cross-entropy of the object among N + the same of the subject, asked by the inverse predicate
           + l2 mean |rows|^2 + n3 mean |rows|^3        of the rows that the batch uses

Source: arXiv:1806.07297 (cross-entropy against all entities, inverse predicates, N3), 1807.00228 (times).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.data.files import generator
from attensor.data.triples import Graph, answers
from attensor.metrics.retrieval import hits_at, mean_reciprocal_rank, ranks
from attensor.models.knowledge.scorers import Scorer
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked, checked_fields
from attensor.train.loop import Progress, TrainConfig, train

__all__ = ["ScorerTraining", "filtered_ranks", "one_to_n_loss", "ranking", "train_scorer"]


@checked_fields
@dataclass(frozen=True)
class ScorerTraining:
    """How a scorer is trained.

    Attributes:
        epochs: times that every triple is seen.
        batch_size: triples of a step.
        learning_rate: of Adam, constant over the first steps, then falling to a tenth.
        label_smoothing: share of the target that all entities have.
        l2, n3: weights of the mean square and cubed size of the rows that are used.
        seed: of the order.
    """

    epochs: int = 60
    batch_size: int = 512
    learning_rate: float = 0.01
    label_smoothing: float = 0.0
    l2: float = 3e-3
    n3: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what nothing can be trained with.

        Raises:
            ValueError: a number out of its range.
        """
        check_range(self, 1, epochs=self.epochs, batch_size=self.batch_size)
        check_range(self, above=0, learning_rate=self.learning_rate)
        check_range(self, 0, l2=self.l2, n3=self.n3)
        check_range(self, 0, 1, label_smoothing=self.label_smoothing)


@checked
def train_scorer(
    model: Scorer,
    graph: Graph,
    how: ScorerTraining,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[Progress], bool] = lambda progress: True,
) -> Progress:
    """Train in place on `graph.train`; the curve is the filtered MRR on `graph.valid`, or on 500 training triples.

    Args:
        model: initialised, for as many entities, predicates and times as the graph has.
        graph: as `open_graph` gives it.
        how: see there.
        checkpoint: file to go on from; None keeps none.
        on_step: called after each step; returning False saves and stops.
    Raises:
        Diverged, Stopped: see `train`.
    """
    device = next(model.parameters()).device
    judged, triples = graph.valid if len(graph.valid) else graph.train[:500], graph.train.to(device)
    per_epoch = -(-len(triples) // how.batch_size)

    def batch(step: int) -> Tensor:
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(triples), generator=generator(how.seed, epoch))
        return triples[order[place * how.batch_size :][: how.batch_size].to(device)]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        added = {"label_smoothing": how.label_smoothing, "l2": how.l2, "n3": how.n3}
        return one_to_n_loss(model, batch, **added)  # type: ignore[arg-type]

    def score(model: nn.Module) -> float:
        return mean_reciprocal_rank(filtered_ranks(model, judged, graph.known))  # type: ignore[arg-type]

    steps = how.epochs * per_epoch
    config = TrainConfig(steps, how.learning_rate, warmup_fraction=0.0, clip_norm=None, evaluations=min(5, steps))
    return train(
        model, batch, loss, config, evaluate=score, checkpoint=checkpoint, optimizer=_adam, on_step=on_step
    )  # fmt: skip


@checked
def one_to_n_loss(
    model: Scorer, triples: Tensor, *, label_smoothing: float = 0.0, l2: float = 0.0, n3: float = 0.0
) -> Tensor:
    """Mean cross-entropy of the object and of the subject among all entities, and what is added to it.

    Args:
        model: scorer.
        triples: [B, 3], or [B, 4] with times.
        label_smoothing: share of the target that all entities have.
        l2, n3: weights of sum |row|^2 and sum |row|^3, means over the triples and both questions.
    Returns:
        [], in nats.
    """
    (s, p, o), t = triples[:, :3].unbind(1), triples[:, 3] if triples.shape[1] > 3 else None
    inverse = p + model.config.num_relations
    told = F.cross_entropy(model.scores(s, p, t), o, label_smoothing=label_smoothing)
    told = told + F.cross_entropy(model.subject_scores(p, o, t), s, label_smoothing=label_smoothing)
    if not (l2 or n3):
        return told
    rows = model.factors(s, p, o, t) + (model.factors(o, inverse, s, t) if model.config.inverse else [])
    sizes = [row.abs() for row in rows]
    added = sum(l2 * size.square().sum(-1).mean() + n3 * size.pow(3).sum(-1).mean() for size in sizes)
    return told + added


@torch.no_grad()
@checked
def filtered_ranks(model: Scorer, triples: Tensor, known: Tensor, *, batch_size: int = 1024) -> Tensor:
    """Ranks of the object of each triple, then of each subject, other right answers left out; ties by their mean.

    Args:
        model: scorer.
        triples: [M, 3] or [M, 4].
        known: all that is true; what is right there and not asked for does not count.
        batch_size: questions at once.
    Returns:
        [2 M], float64: "realistic" ranks of both sides, as PyKEEN's `RankBasedEvaluator` has them.
    """
    device, count = next(model.parameters()).device, model.config.num_entities
    found = []
    for side in ("object", "subject"):
        turn = [0, 1, 2, 3][: triples.shape[1]] if side == "object" else [2, 1, 0, 3][: triples.shape[1]]
        for part in torch.split(triples, batch_size):
            (s, p, o), t = part[:, :3].to(device).unbind(1), part[:, 3].to(device) if part.shape[1] > 3 else None
            scores = model.scores(s, p, t) if side == "object" else model.subject_scores(p, o, t)
            right = answers(known[:, turn], part[:, turn], count).to(device)
            found.append(ranks(scores, o if side == "object" else s, ignore=right))
    return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)


def ranking(found: Tensor) -> dict[str, float]:
    """MRR and hits at 1, 3 and 10 of ranks [B]."""
    return {"mrr": mean_reciprocal_rank(found), **{f"hits@{k}": hits_at(found, k) for k in (1, 3, 10)}}


def _adam(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
