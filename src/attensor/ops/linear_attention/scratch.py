"""Memory that one call uses over and over.

Fresh memory is slow: the system hands out pages one by one, at ten times the cost of writing to old ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Scratch"]


class Scratch:
    """Tensors by name, whose memory the next tensor of the same name takes over.

    Args:
        like: its device and dtype are theirs.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._memory: dict[str, Tensor] = {}
        self._taken: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor; what was taken by that name before is lost."""
        if torch.compiler.is_compiling():
            return self._like.new_empty(shape)  # a compiler plans memory itself
        taken = self._taken.get((name, shape))
        if taken is None:
            size = math.prod(shape)
            memory = self._memory.get(name)
            if memory is None or memory.numel() < size:
                memory = self._memory[name] = self._like.new_empty(size)
            taken = self._taken[name, shape] = memory[:size].view(shape)
        return taken
