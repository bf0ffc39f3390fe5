"""What decides the numbers of small trainings, beside the machine and its threads.

The commands that start them have these very options: nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["PointSetup", "TripleSetup"]


@dataclass(frozen=True, kw_only=True)
class PointSetup:
    """Of a pointer network, or a model that it is compared with, on sets of points."""

    task: Literal["hull", "tsp", "delaunay"]
    """What is asked of the points."""
    sizes: tuple[int, ...] = (5, 6, 7, 8, 9, 10)
    """Numbers of points of the training sets: 5,6,7."""
    model: Literal["pointer", "attention", "plain"] = "pointer"
    """The pointer network, or a baseline of the paper with a fixed vocabulary: sequence to sequence with attention, or
    without."""
    hidden_size: int = 128
    """Units of the LSTMs; the paper has 256 or 512."""
    steps: int = 5000
    """Of the optimizer, Adam; some 15 ms each at the default sizes on one core."""
    batch_size: int = 64
    """Sets of a step, all of one size."""
    instances: int = 6000
    """Training sets of each size."""
    held_out: int = 200
    """Other sets of each size that are scored."""
    learning_rate: float = 3e-3
    """Peak; it falls along a half cosine."""
    init_range: float | None = None
    """Parameters begin uniform within it; with the paper's 0.08 a small model learns nothing for long. Left out: LSTMs
    begin with the unit square centred, and learn several times faster."""
    width: int = 1
    """Beams of the scores."""
    seed: int = 0
    """Of weights, points and their order."""


@dataclass(frozen=True, kw_only=True)
class TripleSetup:
    """Of a scorer of triples, or a Tensor Brain, on a knowledge graph."""

    model: Literal["distmult", "cp", "complex", "rescal", "tucker", "brain"] = "complex"
    """A scorer of triples, or brain, the Tensor Brain."""
    dim: int | None = None
    """Width of embeddings; of a Tensor Brain its state. Left out: 64, 32 for rescal and tucker, 96 for a brain."""
    epochs: int | None = None
    """Times that every triple is seen. Left out: 30 for scorers, 120 for a brain."""
    batch_size: int = 512
    """Triples of a step."""
    learning_rate: float = 0.01
    """Peak, of Adam; it falls along a half cosine to a tenth."""
    label_smoothing: float = 0.0
    """Share of the target that all entities have; of scorers."""
    l2: float = 3e-3
    """Weight of the mean squared size of used rows; of scorers."""
    n3: float = 0.0
    """Weight of the mean cubed size of used rows; of scorers."""
    episodes: int = 200
    """Triples that a brain keeps as episodes, each at a time of its own, the first of the training."""
    seed: int = 0
    """Of random weights, the order, and what is held out of a single file."""
