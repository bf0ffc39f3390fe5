"""`attensor bench triples`: all objects of a batch of questions, by one product, by triples, and by PyKEEN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attensor.bench.apart import LeftOut
from attensor.bench.contest import OURS, Cell, Contestant, Peer, Problem
from attensor.bench.contestants.packages import load
from attensor.bench.hold import Bench
from attensor.models.knowledge.scorers import KINDS, Scorer, ScorerConfig

if TYPE_CHECKING:
    from attensor.commands.bench_triples import BenchTriples

__all__ = ["PEERS", "TriplesProblem", "bench"]

RELATIONS = 46
LOOP, DENSE, PYKEEN = "a score for each triple", "theta of the whole graph", "pykeen"
_PYKEEN_CLASSES = {kind: f"{kind}Interaction" for kind in ("DistMult", "CP", "ComplEx", "RESCAL", "TuckER")}
HOW_TO_READ = (
    "Scores of every entity as the object; the length is the number of entities. 'A score for each triple' gathers "
    "three rows a candidate; 'theta of the whole graph' computes every subject, predicate and object and picks the "
    "rows asked for, at small graphs only; 'pykeen' is its interaction on the same rows. Forward + backward: gradients "
    "of all weights. Useful operations are 2 x questions x entities x width."
)


@dataclass(frozen=True)
class TriplesProblem(Problem):
    """Questions to a scorer; the same weights for all contestants."""

    entities: int
    scorer: str
    questions: int
    dim: int

    kind = property(lambda self: self.scorer)
    size = property(lambda self: (self.questions, self.dim, self.entities))
    label = property(lambda self: f"{self.entities} entities")
    tolerance = property(lambda self: 1e-4 if self.device == "cpu" else 5e-2)

    @property
    def title(self) -> str:
        """Kind and sizes."""
        return f"{self.scorer}, width {self.dim}, {self.questions} questions"

    @cached_property
    def model(self) -> Scorer:
        """Weights drawn from the problem's stream."""
        config = ScorerConfig(self.entities, RELATIONS, dim=self.dim, inverse=False)
        model = KINDS[self.scorer](config).to(self.device, self.dtype)
        with torch.no_grad():
            for seed, weight in enumerate(model.parameters()):
                weight.copy_(self.draw(*weight.shape, seed=seed) / self.dim**0.5)
        return model

    @cached_property
    def asked(self) -> tuple[Tensor, Tensor]:
        """Subjects and predicates, [B] each."""
        number = torch.arange(self.questions, device=self.device)
        return number * 7 % self.entities, number % RELATIONS

    def scored(self, function: Callable[[], Tensor]) -> Contestant:
        """A contestant whose leaves are the weights."""
        upstream = self.draw(self.questions, self.entities, seed=99, dtype=torch.float32)
        return Contestant(lambda *weights: function(), tuple(self.model.parameters()), upstream)


def _ours(problem: TriplesProblem) -> Contestant:
    return problem.scored(lambda: problem.model.scores(*problem.asked))


def _by_triples(problem: TriplesProblem) -> Contestant:
    s, p = (x.repeat_interleave(problem.entities) for x in problem.asked)
    o = torch.arange(problem.entities, device=problem.device).repeat(problem.questions)
    return problem.scored(lambda: problem.model.triple_scores(s, p, o).view(problem.questions, -1))


def _dense(problem: TriplesProblem) -> Contestant:
    if problem.entities > 200:
        raise LeftOut("the whole tensor is for graphs of at most 200 entities")
    every = torch.cartesian_prod(torch.arange(problem.entities), torch.arange(RELATIONS)).to(problem.device)
    s, p = problem.asked
    return problem.scored(lambda: problem.model.scores(*every.unbind(1))[s * RELATIONS + p])


def _pykeen(problem: TriplesProblem) -> Contestant:
    # it has no kernels: on a CPU as on a GPU it is PyTorch
    modules: Any = load("pykeen.nn.modules", "pykeen", "cuda")
    name = next(theirs for ours, theirs in _PYKEEN_CLASSES.items() if ours.lower() == problem.scorer)
    sizes = {"embedding_dim": problem.dim, "relation_dim": problem.dim, "apply_batch_normalization": False}
    off = {f"{part}_dropout": 0 for part in ("head", "relation", "head_relation")}
    interaction = getattr(modules, name)(**sizes | off) if problem.scorer == "tucker" else getattr(modules, name)()
    model, (s, p) = problem.model, problem.asked

    def scores() -> Tensor:
        relations = model.relations.weight[p]
        if problem.scorer == "tucker":
            interaction._parameters["core_tensor"] = model.core
        if problem.scorer == "rescal":
            relations = relations.view(-1, problem.dim, problem.dim)
        h, r, t = (_as_theirs(x, problem.scorer) for x in (_rows(model, 0)[s], relations, _rows(model, 1)))
        out: Tensor = interaction.score_t(h=h, r=r, all_entities=t)
        return out

    return problem.scored(scores)


def _rows(model: Scorer, role: int) -> Tensor:
    weight: Tensor = getattr(model, model.roles[role]).weight
    return weight


def _as_theirs(x: Tensor, scorer: str) -> Tensor:
    if scorer == "complex":
        return torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
    return x[:, None] if scorer == "cp" else x


def _reference(problem: TriplesProblem) -> Tensor:
    """One question and one entity at a time."""
    model, entities = problem.model, torch.arange(problem.entities, device=problem.device)
    rows = []
    for s, p in zip(*problem.asked):
        rows.append(model.triple_scores(s.expand(len(entities)), p.expand(len(entities)), entities))
    return torch.stack(rows)


def _flops(problem: TriplesProblem) -> float:
    return 2.0 * problem.questions * problem.entities * problem.dim * problem.model.width


PEERS = (
    Peer(OURS, _ours, _flops, packages=("attensor",), reference=_reference),
    Peer(LOOP, _by_triples, _flops, packages=("torch",)),
    Peer(DENSE, _dense, _flops),
    Peer(PYKEEN, _pykeen, _flops, packages=("pykeen",)),
)


def bench(options: BenchTriples) -> Bench:
    """The contest of the options; small graphs first."""
    width = {kind: options.dim // (2 if kind in ("rescal", "tucker") else 1) for kind in options.kinds}
    make = partial(TriplesProblem, questions=options.questions, device=options.device)
    small = [TriplesProblem(17, kind, 5, 8, device=options.device) for kind in dict.fromkeys(options.kinds)]
    cells = [
        Cell(mode, [make(count, kind, dim=max(1, width[kind]))])
        for mode in options.modes
        for kind in dict.fromkeys(options.kinds)
        for count in sorted(set(options.entities))
    ]
    return Bench(PEERS, small, cells, HOW_TO_READ)
