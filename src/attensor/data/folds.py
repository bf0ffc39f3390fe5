"""Folds of a training side: parts of about equal size, of whole files where that is possible."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Folds"]


@dataclass(frozen=True)
class Folds:
    """Stretches of a side in their order, each of one fold; together they are the side.

    Attributes:
        ends: int64 [stretches], ascending: where each ends.
        numbers: int64 [stretches]: the fold of each, 0 .. count - 1.
        count: folds.
    """

    ends: Tensor
    numbers: Tensor
    count: int

    @classmethod
    def of(cls, sizes: Sequence[int], count: int) -> Folds:
        """Put each file into the fold with the fewest bytes so far, large files first.

        A file with more bytes than a fold should have is cut into `count` stretches, one for each fold.

        Args:
            sizes: of the files, in bytes, in their order.
            count: folds.
        """
        stretches: list[tuple[int, int | None]] = []
        for size in sizes:
            if size * count > sum(sizes):
                edges = [size * i // count for i in range(count + 1)]
                stretches += [(end - start, i) for i, (start, end) in enumerate(itertools.pairwise(edges))]
            else:
                stretches.append((size, None))
        filled = [sum(size for size, fold in stretches if fold == number) for number in range(count)]
        numbers = [fold or 0 for _, fold in stretches]
        for index in sorted(range(len(stretches)), key=lambda index: -stretches[index][0]):
            if stretches[index][1] is None:
                numbers[index] = min(range(count), key=filled.__getitem__)
                filled[numbers[index]] += stretches[index][0]
        ends = torch.tensor([size for size, _ in stretches], dtype=torch.int64).cumsum(0)
        return cls(ends, torch.tensor(numbers, dtype=torch.int64), count)

    def between(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Start, end and fold of the stretches from `start` to `end`; the first and the last may be parts."""
        first = int(torch.searchsorted(self.ends, start, right=True))
        for stretch, number in zip(self.ends[first:].tolist(), self.numbers[first:].tolist(), strict=True):
            if start >= end:
                return
            yield start, min(stretch, end), number
            start = stretch

    def at(self, places: Tensor) -> Tensor:
        """The fold of the byte at each place of the side: int64, any shape to the same."""
        return self.numbers[torch.searchsorted(self.ends, places, right=True)]
