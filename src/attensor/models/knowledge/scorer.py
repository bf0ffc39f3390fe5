"""What all scorers of triples share: their sizes, questions in both directions, checks, and mixtures of times."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from attensor.errors import ShapeError
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked, checked_fields, is_readable

__all__ = ["Scored", "Scorer", "ScorerConfig", "TimedScorer", "check_index"]


@checked_fields
@dataclass(frozen=True)
class ScorerConfig:
    """Sizes of a scorer.

    Attributes:
        num_entities: N.
        num_relations: P.
        dim: r, complex numbers in ComplEx.
        relation_dim: r2, of Tucker alone; `dim` if None.
        num_times: T; 0 for triples without times.
        time_dim: r3, of Tucker alone; `dim` if None.
        inverse: a second row for each predicate, by which the subject is asked for as an object: `(o, p + P, ?)`.
        nonnegative: factors are the sizes of the weights, so that theta is a share of probability; without `inverse`.
    Raises:
        ValueError: a number below 1, or `nonnegative` with `inverse`.
    """

    num_entities: int
    num_relations: int
    dim: int = 128
    relation_dim: int | None = None
    num_times: int = 0
    time_dim: int | None = None
    inverse: bool = True
    nonnegative: bool = False

    def __post_init__(self) -> None:
        """Refuse what no model can be built of."""
        name = type(self).__name__
        sizes = {"num_entities": self.num_entities, "num_relations": self.num_relations, "dim": self.dim}
        check_range(name, 1, **sizes, relation_dim=self.relation_dim, time_dim=self.time_dim)
        check_range(name, 0, num_times=self.num_times)
        if self.nonnegative and self.inverse:
            raise ValueError(
                f"{name}: nonnegative must be False with inverse: an inverse row would count every triple twice; use "
                "inverse=False."
            )


class Scored(NamedTuple):
    """What a call gives: `logits` [B, N], a score for every entity as the object."""

    logits: Tensor


class Scorer(nn.Module, ABC):
    """What all scorers share: questions, both directions, and their checks.

    A kind states `_query` (of subject, predicate, time) and `_subject_query`; one with times is a `TimedScorer`.

    Args:
        config: sizes.
    """

    tiny: ClassVar[ScorerConfig] = ScorerConfig(7, 3, dim=4)
    presets: ClassVar[dict[str, ScorerConfig]] = {}
    roles: ClassVar[tuple[str, str]] = ("entities", "entities")
    width: ClassVar[int] = 1  # numbers that an entry of an embedding takes
    takes_times: ClassVar[bool] = False
    can_be_nonnegative: ClassVar[bool] = True

    @checked
    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        name = type(self).__name__
        if config.num_times and not self.takes_times:
            raise ValueError(
                f"{name}: num_times must be 0, it has no factor for them, got {config.num_times}; use Tucker."
            )
        if config.nonnegative and not self.can_be_nonnegative:
            raise ValueError(f"{name}: nonnegative must be False, its factors are complex; use CP or Tucker.")
        self.config = config
        for role in dict.fromkeys(self.roles):
            setattr(self, role, nn.Embedding(config.num_entities, config.dim * self.width))
        self.relations = nn.Embedding(config.num_relations * (1 + config.inverse), self._relation_size())
        self.times = nn.Embedding(config.num_times, self._time_size()) if config.num_times else None
        self._build()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Entities by a normal distribution of variance 1 / r, predicates and times around what changes nothing."""
        for table in self.children():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=1 / math.sqrt(self.config.dim))
        if self.times is not None:
            self.times.weight.add_(1.0)

    def forward(self, s: Tensor, p: Tensor, t: Tensor | None = None) -> Scored:
        """As `scores`, with a name."""
        return Scored(self.scores(s, p, t))

    @checked
    def scores(self, s: Tensor, p: Tensor, t: Tensor | None = None) -> Tensor:
        """theta of every entity as the object: O(B N r) and one product of matrices.

        Args:
            s: [B] subjects, int64.
            p: [B] predicates; below 2 P with `inverse`.
            t: [B] times; needed by a model with times, and by no other.
        Returns:
            [B, N], at least float32.
        Raises:
            ShapeError: sizes differ. TypeError: no integers. ValueError: a number that is not there, times that are
                missing or too many.
        """
        self._check(t, s=(s, self.config.num_entities), p=(p, self.relations.num_embeddings))
        return self._query(s, p, t) @ self._table(self.roles[1]).mT

    @checked
    def subject_scores(self, p: Tensor, o: Tensor, t: Tensor | None = None) -> Tensor:
        """theta of every entity as the subject, [B, N]: of the inverse predicate if there is one; as `scores`."""
        self._check(t, p=(p, self.config.num_relations), o=(o, self.config.num_entities))
        if self.config.inverse:
            return self.scores(o, p + self.config.num_relations, t)
        return self._subject_query(p, o, t) @ self._table(self.roles[0]).mT

    @checked
    def triple_scores(self, s: Tensor, p: Tensor, o: Tensor, t: Tensor | None = None) -> Tensor:
        """theta of single triples, [B]; arguments as of `scores` and `subject_scores`."""
        entities = self.config.num_entities
        self._check(t, s=(s, entities), p=(p, self.relations.num_embeddings), o=(o, entities))
        return (self._query(s, p, t) * self._table(self.roles[1])[o]).sum(-1)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Questions with every predicate, two a subject."""
        count = max(self.config.num_entities, 2 * self.relations.num_embeddings)
        asked = torch.arange(count)
        given = {"s": asked % self.config.num_entities, "p": asked % self.relations.num_embeddings}
        return given | ({"t": asked % self.config.num_times} if self.config.num_times else {})

    def factors(self, s: Tensor, p: Tensor, o: Tensor, t: Tensor | None = None) -> list[Tensor]:
        """Rows that these triples use, [B, .] each, for what a training adds to its loss; complex in ComplEx."""
        rows = [self._table(self.roles[0])[s], self._table("relations")[p], self._table(self.roles[1])[o]]
        return rows if t is None else [*rows, self._table("times")[t]]

    def total(self, t: Tensor) -> Tensor:
        """Sum of theta over all triples at the times t [B], in O(r) a time: [B].

        Raises:
            ValueError: a model without times.
        """
        raise self._without_times()

    @checked
    def at_mixed_time(self, weights: Tensor) -> Self:
        """The model without times whose theta is that of this one summed over times by `weights` [T].

        Raises:
            ShapeError: another number of weights. ValueError: a model without times.
        """
        raise self._without_times()

    def _without_times(self) -> ValueError:
        repair = "build it with num_times" if self.takes_times else "it has no factor for them; use Tucker"
        return ValueError(f"{type(self).__name__}: has no times to sum over; {repair}.")

    def _build(self) -> None:
        """Further parameters."""

    def _relation_size(self) -> int:
        return self.config.dim * self.width

    def _time_size(self) -> int:
        return self.config.dim * self.width

    @abstractmethod
    def _query(self, s: Tensor, p: Tensor, t: Tensor | None) -> Tensor:
        """What is multiplied with the row of every object: [B, width of a row]."""

    @abstractmethod
    def _subject_query(self, p: Tensor, o: Tensor, t: Tensor | None) -> Tensor:
        """What is multiplied with the row of every subject: [B, width of a row]."""

    def _table(self, name: str) -> Tensor:
        """Embeddings as they count: at least float32, without sign if `nonnegative`."""
        weight: Tensor = getattr(self, name).weight
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return weight.abs() if self.config.nonnegative else weight

    def _check(self, t: Tensor | None, **asked: Any) -> None:
        name, count = type(self).__name__, self.config.num_times
        if (t is None) != (count == 0):
            said = "must be given, the model has times" if t is None else "must be None, the model has no times"
            raise ValueError(f"{name}: t {said} (num_times {count}).")
        if t is not None:
            asked["t"] = (t, count)
        first = next(iter(asked.values()))[0]
        for argument, (index, bound) in asked.items():
            check_index(name, argument, index, bound, first)


class TimedScorer(Scorer, ABC):
    """A scorer that can have times as a further factor.

    A kind also states `_total`, and `_mixed` for what times are multiplied into.
    """

    takes_times = True

    def total(self, t: Tensor) -> Tensor:
        """As of `Scorer`."""
        if self.times is None:
            raise self._without_times()
        return self._total(t)

    def at_mixed_time(self, weights: Tensor) -> Self:
        """As of `Scorer`."""
        count = self.config.num_times
        if self.times is None:
            raise self._without_times()
        if weights.shape != (count,):
            raise ShapeError(
                f"{type(self).__name__}: weights must be [{count}], one a time, got {list(weights.shape)}."
            )
        mixed = type(self)(replace(self.config, num_times=0)).to(weights.device, self.times.weight.dtype)
        with torch.no_grad():
            for name, parameter in mixed.named_parameters():
                parameter.copy_(self._mixed(name, weights.to(parameter.dtype) @ self._table("times")))
        return mixed

    @abstractmethod
    def _total(self, t: Tensor) -> Tensor:
        """See `total`; there are times."""

    @abstractmethod
    def _mixed(self, name: str, time: Tensor) -> Tensor:
        """A parameter of the model without times, whose one time is `time`."""


def check_index(name: str, argument: str, index: Tensor, bound: int, first: Tensor) -> None:
    """Refuse what is not [B] int64 from 0 to `bound - 1`, as long as `first`.

    Raises:
        TypeError: other numbers. ShapeError: another shape. ValueError: a number that is not there.
    """
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        raise TypeError(f"{name}: {argument} must be int64, got {getattr(index, 'dtype', type(index).__name__)}.")
    if index.ndim != 1 or index.shape != first.shape:
        raise ShapeError(f"{name}: {argument} must be [B] = {list(first.shape[:1])}, got {list(index.shape)}.")
    if is_readable(index) and index.numel():
        low, high = (int(x) for x in index.aminmax())
        if low < 0 or high >= bound:
            raise ValueError(f"{name}: {argument} must be 0 .. {bound - 1}, got {low} .. {high}.")
