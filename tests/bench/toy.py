"""A problem whose contestants are written in one line each, for the contest's own tests; found by the other process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attensor.bench.apart import LeftOut
from attensor.bench.contest import OURS, Cell, Contestant, Peer, Problem, Row
from attensor.bench.hold import Bench

MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Toy(Problem):
    """x times `factor`, of `length` numbers."""

    length: int
    factor: float = 2.0

    kind = property(lambda self: f"times {self.factor:g}")
    title = property(lambda self: f"toy, {self.kind}")
    size = property(lambda self: (self.length,))
    tokens = property(lambda self: self.length)
    input_bytes = property(lambda self: 4 * self.length)
    shapes = property(lambda self: [(self.length,), (self.length,)])

    def plain(self) -> Toy:
        """Others know nothing of the factor."""
        return replace(self, factor=0.0)


def product(problem: Toy, error: float = 1.0) -> Contestant:
    """The factor times x, and perhaps a little more."""
    return problem.contestant(lambda x: problem.factor * error * x)


def absent(problem: Toy) -> Contestant:
    """Nothing."""
    raise LeftOut("toys is not installed")


def failing(problem: Toy) -> Contestant:
    """Right at a small size, and unwilling at a large one."""

    def function(x: Tensor) -> Tensor:
        if len(x) > 10:
            raise RuntimeError("no more than 10\nand more")
        return problem.factor * x

    return problem.contestant(function)


def ending(problem: Toy) -> Contestant:
    """The process that it is called in ends."""
    os._exit(3)


def interrupted(problem: Toy) -> Contestant:
    """Ctrl-C at a large size."""
    if problem.length > 10:
        raise KeyboardInterrupt
    return product(problem)


def sleeping(problem: Toy) -> Contestant:
    """A second a hundred numbers."""
    return problem.contestant(lambda x: (time.sleep(len(x) / 100), problem.factor * x)[1])


def holding(problem: Toy) -> Contestant:
    """Three times the length in MiB at the same time: two terms and their sum."""
    return problem.contestant(lambda x: (torch.ones(problem.length, 2**18) + torch.ones(problem.length, 2**18))[:, 0])


def greedy(problem: Toy) -> Contestant:
    """More than half of the machine's memory, none of it touched."""
    return problem.contestant(lambda x: torch.empty(6 * MEMORY // 10, dtype=torch.uint8))


def square(problem: Toy) -> Contestant:
    """Another function."""
    return problem.contestant(lambda x: x * x)


def flops(problem: Toy) -> float:
    """One a number."""
    return float(problem.length)


def peer(name: str, build: Callable[[Any], Contestant] = product, **traits: Any) -> Peer:
    """Of that name."""
    return Peer(name, build, flops, **traits)


PEERS = (peer(OURS), peer("same"), peer("square", square, computes="the square"), peer("absent", absent))
wrong = partial(product, error=1.01)


def bench(options: Any, peers: Sequence[Peer] = PEERS) -> Bench:
    """Both passes at each length."""
    cells = [Cell(mode, [Toy(length)]) for length in options.lengths for mode in ("forward", "training")]
    return Bench(peers, [Toy(4)], cells, "A toy.")


def figures(rows: list[Row]) -> dict[tuple[str, int], str]:
    """(peer, length) -> why it was left out."""
    return {(row.peer, row.problem.length): row.skipped for row in rows}
