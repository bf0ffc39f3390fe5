"""`attensor bench triples`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from attensor.commands.bench import BenchOptions

__all__ = ["BenchTriples"]


@dataclass(frozen=True)
class BenchTriples(BenchOptions):
    """Scores of all objects of some questions, by one product, against a score for each triple, and PyKEEN.

    The default run takes a minute or two. PyKEEN takes part where it is installed.
    """

    name = "triples"
    quick_look: ClassVar = {"entities": (1000,), "kinds": ("complex",), "modes": ("forward",)}

    entities: tuple[int, ...] = (135, 1000, 10_000)
    """Entities of the graph."""
    kinds: tuple[Literal["distmult", "cp", "complex", "rescal", "tucker"], ...] = ("distmult", "complex", "rescal")
    """Scorers, out of distmult, cp, complex, rescal and tucker."""
    modes: tuple[Literal["forward", "training"], ...] = ("forward", "training")
    """Out of forward and training (forward + backward)."""
    questions: int = 128
    """Pairs of subject and predicate in a batch."""
    dim: int = 64
    """Width of embeddings; of rescal and tucker half of it."""
