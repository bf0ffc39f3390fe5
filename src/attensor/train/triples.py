"""Training scorers of triples: both directions, one question against all entities, ranks that are filtered.

    loss = cross-entropy of the object among N + the same of the subject, asked by the inverse predicate
           + l2 mean |rows|^2 + n3 mean |rows|^3        of the rows that the batch uses

Source: arXiv:1806.07297 (cross-entropy against all entities, inverse predicates, N3), 1807.00228 (times).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.data.files import generator
from attensor.data.triples import Graph, answers
from attensor.metrics.retrieval import hits_at, mean_reciprocal_rank, ranks
from attensor.models.knowledge.scorers import KINDS, Scorer, ScorerConfig
from attensor.ops._checks import checked
from attensor.train.loop import TrainConfig
from attensor.train.setups import TripleSetup

__all__ = ["ScorerTraining", "build", "filtered_ranks", "one_to_n_loss", "ranking"]

EPOCHS = 30  # where the setup says none


class ScorerTraining:
    """Batches, loss and scores of a scorer, for `attensor.train.run_training`.

    Args:
        setup: what decides the numbers; its `model` is a scorer.
        graph: as `open_graph` gives it: `train` is learned from, `valid` scored, or 500 training triples without one.
        device: of the model.
    """

    def __init__(self, setup: TripleSetup, graph: Graph, *, device: torch.device | str = "cpu") -> None:
        self.setup, self.graph = setup, graph
        self.model = build(setup, graph).to(device)
        self._train, self._judged = graph.train.to(device), graph.valid if len(graph.valid) else graph.train[:500]
        self._per_epoch = -(-len(graph.train) // setup.batch_size)

    @property
    def config(self) -> TrainConfig:
        """For the loop."""
        steps = (self.setup.epochs or EPOCHS) * self._per_epoch
        rate = self.setup.learning_rate
        return TrainConfig(steps, rate, warmup_fraction=0.0, clip_norm=None, evaluations=min(5, steps))

    def batch(self, step: int) -> Tensor:
        """Triples of a step; each epoch goes through all of them in an order of its own."""
        epoch, place = divmod(step, self._per_epoch)
        order = torch.randperm(len(self._train), generator=generator(self.setup.seed, epoch))
        size = self.setup.batch_size
        return self._train[order[place * size :][:size].to(self._train.device)]

    def loss(self, model: Scorer, batch: Tensor) -> Tensor:
        """Cross-entropy of both questions, and what is added to it."""
        setup = self.setup
        return one_to_n_loss(model, batch, label_smoothing=setup.label_smoothing, l2=setup.l2, n3=setup.n3)

    def optimizer(self, model: Scorer, learning_rate: float) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)

    def evaluate(self, model: Scorer) -> float:
        """Filtered MRR."""
        return mean_reciprocal_rank(filtered_ranks(model, self._judged, self.graph.known))


def build(setup: TripleSetup, graph: Graph) -> Scorer:
    """The scorer, drawn by the setup's seed.

    Raises:
        ValueError: its `model` is no scorer. Also as of the scorer: times that it has no factor for, for instance.
    """
    if setup.model not in KINDS:
        raise ValueError(f"TripleSetup: model must be one of {', '.join(KINDS)} for a scorer, got {setup.model!r}.")
    dim = setup.dim or (32 if setup.model in ("rescal", "tucker") else 64)
    torch.manual_seed(setup.seed)
    config = ScorerConfig(len(graph.entities), len(graph.relations), dim=dim, num_times=len(graph.times))
    return KINDS[setup.model](config)


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
            found.append(ranks(scores, o if side == "object" else s, filter=right))
    return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)


def ranking(found: Tensor) -> dict[str, float]:
    """MRR and hits at 1, 3 and 10 of ranks [B]."""
    return {"mrr": mean_reciprocal_rank(found), **{f"hits@{k}": hits_at(found, k) for k in (1, 3, 10)}}
