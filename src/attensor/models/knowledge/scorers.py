r"""Scores of triples from embeddings: DistMult, CP, ComplEx, RESCAL and Tucker, with times as a fourth factor.

    DistMult   theta_spo = sum_r a_sr a_pr a_or                 symmetric in subject and object
    CP         theta_spo = sum_r a^s_sr a_pr a^o_or             an entity has two roles
    ComplEx    theta_spo = Re sum_r a_sr a_pr conj(a_or)        complex
    RESCAL     theta_spo = a_s^T G_p a_o
    Tucker     theta_spo = sum_ijk g_ijk a_si a_pj a_ok
    at time t  a_p becomes a_p * a_t, in Tucker g_ijk becomes sum_l g_ijkl a_tl

All are linear in the object: a query vector of subject, predicate and time, times the matrix of all entities. Never is
N x P x N built. Sizes: B questions, N entities, P predicates, T times, r width (of predicates r2, of times r3).
Source: arXiv:1412.6575, 1806.07297, 1606.06357, RESCAL (Nickel 2011), 1901.09590, and with times 1807.00228.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from attensor.models.knowledge.scorer import Scored as Scored
from attensor.models.knowledge.scorer import Scorer as Scorer
from attensor.models.knowledge.scorer import ScorerConfig as ScorerConfig
from attensor.models.knowledge.scorer import TimedScorer

__all__ = ["CP", "KINDS", "RESCAL", "ComplEx", "DistMult", "Scored", "Scorer", "ScorerConfig", "Tucker"]


class DistMult(TimedScorer):
    """One row for each entity and predicate, (N + P) r numbers: what is true of s and o is true of o and s."""

    def _query(self, s: Tensor, p: Tensor, t: Tensor | None) -> Tensor:
        return self._table(self.roles[0])[s] * self._relation(p, t)

    def _subject_query(self, p: Tensor, o: Tensor, t: Tensor | None) -> Tensor:
        return self._relation(p, t) * self._table(self.roles[1])[o]

    def _relation(self, p: Tensor, t: Tensor | None) -> Tensor:
        rows = self._table("relations")[p]
        return rows if t is None else rows * self._table("times")[t]

    def _total(self, t: Tensor) -> Tensor:
        sums = [self._table(name).sum(0) for name in self.roles]
        sums.append(self._table("relations")[: self.config.num_relations].sum(0))
        return self._table("times")[t] @ (sums[0] * sums[1] * sums[2])

    def _mixed(self, name: str, time: Tensor) -> Tensor:
        weight: Tensor = self.get_parameter(name)
        return self._table("relations") * time if name == "relations.weight" else weight


class CP(DistMult):
    """The canonical polyadic decomposition: an entity has a row as a subject and one as an object, (2 N + P) r."""

    roles = ("subjects", "objects")


class ComplEx(DistMult):
    """Complex rows, 2 (N + P) r numbers, kept as (real, imaginary) side by side: relations need not be symmetric."""

    width = 2
    can_be_nonnegative = False

    def _query(self, s: Tensor, p: Tensor, t: Tensor | None) -> Tensor:
        return _real(_complex(self._table("entities")[s]) * self._complex_relation(p, t))

    def _subject_query(self, p: Tensor, o: Tensor, t: Tensor | None) -> Tensor:
        # Re(s p conj(o)) is the real product of s with conj(p) o
        return _real(self._complex_relation(p, t).conj() * _complex(self._table("entities")[o]))

    def _complex_relation(self, p: Tensor, t: Tensor | None) -> Tensor:
        rows = _complex(self._table("relations")[p])
        return rows if t is None else rows * _complex(self._table("times")[t])

    def factors(self, s: Tensor, p: Tensor, o: Tensor, t: Tensor | None = None) -> list[Tensor]:
        """Rows that these triples use, complex [B, r] each."""
        return [_complex(rows) for rows in super().factors(s, p, o, t)]

    def _total(self, t: Tensor) -> Tensor:
        entities = _complex(self._table("entities")).sum(0)
        relations = _complex(self._table("relations")[: self.config.num_relations]).sum(0)
        return (_complex(self._table("times")[t]) @ (entities * entities.conj() * relations)).real

    def _mixed(self, name: str, time: Tensor) -> Tensor:
        weight: Tensor = self.get_parameter(name)
        return _real(_complex(weight) * _complex(time)) if name == "relations.weight" else weight

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As of the others; a time begins as the real number 1."""
        super().reset_parameters()
        if self.times is not None:
            self.times.weight[:, 1::2] -= 1.0


class RESCAL(Scorer):
    """A whole matrix for each predicate: N r + P r^2 numbers. It takes no times; Tucker does."""

    def _relation_size(self) -> int:
        return self.config.dim**2

    def _matrices(self, p: Tensor, t: Tensor | None) -> Tensor:
        """G of each question, [B, r, r]."""
        rows: Tensor = self._table("relations")[p]
        return rows.view(-1, self.config.dim, self.config.dim)

    def _query(self, s: Tensor, p: Tensor, t: Tensor | None) -> Tensor:
        return torch.einsum("bi,bik->bk", self._table("entities")[s], self._matrices(p, t))

    def _subject_query(self, p: Tensor, o: Tensor, t: Tensor | None) -> Tensor:
        return torch.einsum("bik,bk->bi", self._matrices(p, t), self._table("entities")[o])


class Tucker(RESCAL, TimedScorer):
    """A core between factors: N r + P r2 + r r2 r numbers; with times a core of four axes and T r3 more.

    The core's axes are (subject, predicate, object), as in PyKEEN, then the time.
    """

    tiny: ClassVar[ScorerConfig] = ScorerConfig(7, 3, dim=4, relation_dim=3)

    def _relation_size(self) -> int:
        return self.config.relation_dim or self.config.dim

    def _time_size(self) -> int:
        return self.config.time_dim or self.config.dim

    def _build(self) -> None:
        last = (self._time_size(),) if self.config.num_times else ()
        self.core = nn.Parameter(torch.empty(self.config.dim, self._relation_size(), self.config.dim, *last))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As of the others; the core by a normal distribution of variance 1 / r2, or 1 / (r2 r3)."""
        super().reset_parameters()
        nn.init.normal_(self.core, std=math.prod((self._relation_size(), *self.core.shape[3:])) ** -0.5)

    def _core(self) -> Tensor:
        core = self.core.to(torch.promote_types(self.core.dtype, torch.float32))
        return core.abs() if self.config.nonnegative else core

    def _matrices(self, p: Tensor, t: Tensor | None) -> Tensor:
        rows = self._table("relations")[p]
        if t is None:
            return torch.einsum("bj,ijk->bik", rows, self._core())
        # one product with the core: of predicate and time there are fewer than of entities
        both = (rows[:, :, None] * self._table("times")[t][:, None]).flatten(1)
        core = self._core().permute(1, 3, 0, 2).flatten(0, 1).flatten(1)
        return (both @ core).view(-1, self.config.dim, self.config.dim)

    def _total(self, t: Tensor) -> Tensor:
        entities = self._table("entities").sum(0)
        relations = self._table("relations")[: self.config.num_relations].sum(0)
        share = torch.einsum("ijkl,i,j,k->l", self._core(), entities, relations, entities)
        return self._table("times")[t] @ share

    def _mixed(self, name: str, time: Tensor) -> Tensor:
        weight: Tensor = self.get_parameter(name)
        return self._core() @ time if name == "core" else weight


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()).flatten(-2)


KINDS: dict[str, type[Scorer]] = {
    "distmult": DistMult,
    "cp": CP,
    "complex": ComplEx,
    "rescal": RESCAL,
    "tucker": Tucker,
}
