"""`attensor bench pointing`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from attensor.commands.bench import BenchOptions

__all__ = ["BenchPointing"]


@dataclass(frozen=True)
class BenchPointing(BenchOptions):
    """Additive scores of pointer networks against one tensor of all tanh and a loop over steps; then paths and tours.

    Paths of gaze by OAT of the published size, against the authors' loop over the whole model with the same weights.
    A tour by a pointer network, by dynamic programming, local search and, where they are installed, python-tsp and
    elkai: milliseconds an instance. Solvers win at every size; the table says by how much.
    """

    name = "pointing"
    quick_look: ClassVar = {"lengths": (10, 50), "modes": ("forward",), "objects": (27,), "cities": (5, 10)}

    lengths: tuple[int, ...] = (10, 50, 200, 500)
    """Points of an input; as many choices."""
    batch_size: int = 32
    """Inputs of a call."""
    hidden_size: int = 256
    """Units."""
    modes: tuple[Literal["forward", "training"], ...] = ("forward", "training")
    """Out of forward and training (forward + backward)."""
    objects: tuple[int, ...] = (27, 84)
    """Of the scenes that are looked at, up to 196."""
    fixations: int = 15
    """Of a path over them."""
    cities: tuple[int, ...] = (5, 10, 12, 20, 50)
    """Of the tours."""
