"""Sizes and choices of a Tensor Brain, and where its columns stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from attensor.nn._shapes import check_range
from attensor.ops._checks import checked_fields

__all__ = ["Context", "Feedback", "Offset", "TensorBrainConfig"]

Feedback = Literal["attention", "sample"]
Context = Literal["recurrent", "feedforward"]
Offset = Literal["sums", "learned"]


@checked_fields
@dataclass(frozen=True)
class TensorBrainConfig:
    """Sizes and choices; the defaults are those of the paper but for the scores, see `centred`, and `beta`, there 1.

    Attributes:
        num_entities: symbols that can be subject or object.
        num_predicates: symbols between them.
        unary: name of a group of labels -> number of labels, such as `{"class": 10, "colour": 5}`; the order counts.
        num_times: time indices, each an episode; 0 for none.
        input_size: numbers that an encoder gets of each of the four windows.
        dim: D, of the representation layer q.
        hidden_size: H, of the working memory h.
        beta: inverse temperature of the choice among symbols.
        centred: scores from sig(q) - 1/2 instead of sig(q). Without it, and without an offset, a column of unit norm
            does not even recall itself at first: the constant half of each sum outweighs the signal.
        offset: a number added to each score: `"sums"`, -sum_l softplus(A_lk), or `"learned"`, which begins as
            -1/2 sum_l A_lk; None adds nothing.
        context: `"recurrent"`, h <- B sig(sig(h) + V sig(q)), q <- W sig(h); `"feedforward"`,
            q <- W sig(v0 + V sig(q)); None forgets q from window to window: with no feedback this is the paper's
            P-Direct.
        feedback: of decoding where nothing else is asked: `"attention"` adds sum_k P(k) a_k, `"sample"` the column of
            one symbol, drawn (or told, in training), None nothing.
        keep, write: q <- keep q + write feedback; (1, 1) is the paper's, (0, 1) overwrites, (1, 0) reads only.
    Raises:
        ValueError: a number out of range.
    """

    num_entities: int
    num_predicates: int
    unary: Mapping[str, int] = field(default_factory=dict)
    num_times: int = 0
    input_size: int = 32
    dim: int = 96
    hidden_size: int = 96
    beta: float = 4.0
    centred: bool = True
    offset: Offset | None = None
    context: Context | None = "recurrent"
    feedback: Feedback | None = "attention"
    keep: float = 1.0
    write: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what no model can be built of."""
        name = type(self).__name__
        sizes = {"num_entities": self.num_entities, "num_predicates": self.num_predicates}
        check_range(name, 1, **sizes, input_size=self.input_size, dim=self.dim, hidden_size=self.hidden_size)
        check_range(name, 1, **{f"unary[{group!r}]": size for group, size in self.unary.items()})
        check_range(name, 0, num_times=self.num_times)
        check_range(name, above=0, beta=self.beta)
        if taken := {"scene", "subject", "object", "predicate", "time"} & set(self.unary):
            raise ValueError(f"{name}: unary must have names of its own, got {sorted(taken)}, which are windows.")

    @property
    def groups(self) -> dict[str, range]:
        """Columns of each group: entities, the unary ones in their order, predicates, times."""
        sizes = {"entities": self.num_entities, **self.unary, "predicates": self.num_predicates}
        found, start = {}, 0
        for name, size in {**sizes, "times": self.num_times}.items():
            found[name] = range(start, start + size)
            start += size
        return found

    @property
    def num_columns(self) -> int:
        """K."""
        return self.groups["times"].stop
