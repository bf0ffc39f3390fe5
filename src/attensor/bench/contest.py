"""A contest: one problem and its peers, who must agree before they are timed against each other in turn.

A benchmark is a problem and its peers, nothing else. A peer says how to make a contestant of a problem, or why it
cannot. `Contest` compares what they compute, calls each once in a process of its own (its peak memory, and an end for
who takes too long), then times all of a cell in alternating rounds, the matrix product among them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from attensor.bench.apart import Apart, brief
from attensor.bench.machine import matrix_product
from attensor.bench.timing import alternate, seconds_of
from attensor.ops import backend

__all__ = ["OURS", "SAME", "Cell", "Check", "Contest", "Contestant", "Mode", "Peer", "Problem", "Row"]

Mode = Literal["forward", "training", "decode"]
OURS = "ours"
SAME = "the same function"
# A first call takes this much longer than those after it.
FIRST_CALL = 1.5


@dataclass(frozen=True)
class Problem:
    """What is computed at one size, on "cpu" (float32) or "cuda" (bfloat16); a subclass adds fields and inputs.

    Attributes:
        title: what the rows of one table share.
        size: numbers of which none grows without more work; the last is the length.
        kind: what a peer must be able to compute, at whatever size.
        series: what the rows of the overview share, whose columns are lengths.
        label: the size in a table.
        tokens: of a call; 0 where that means nothing.
        images: the same.
        input_bytes: to which the peak is compared; 0 where that means nothing.
        tolerance: largest error, relative to the largest output, that still is the same function.
        dtype: of the inputs.
        shapes: of the inputs that `contestant` differentiates for, and last of the output.
    """

    device: str = field(default="cpu", kw_only=True)

    title = property(lambda self: "")
    size = property(lambda self: (1,))
    kind = property(lambda self: "all")
    series = property(lambda self: self.title)
    label = property(lambda self: str(self.size[-1]))
    tokens = property(lambda self: 0)
    images = property(lambda self: 0)
    input_bytes = property(lambda self: 0)
    shapes = property(lambda self: ())
    tolerance = property(lambda self: 1e-3 if self.device == "cpu" else 5e-2)
    dtype = property(lambda self: torch.float32 if self.device == "cpu" else torch.bfloat16)

    def plain(self) -> Self:
        """The problem as others see it, who compute another function; they are timed once for all that look alike."""
        return self

    def draw(self, *shape: int, seed: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers, the same for the same shape and seed."""
        return _draw(shape, seed, self.device, dtype or self.dtype)

    def leaf(self, *shape: int, seed: int) -> Tensor:
        """The same, to be differentiated for."""
        return self.draw(*shape, seed=seed).detach().requires_grad_()

    def contestant(self, function: Callable[..., Tensor]) -> Contestant:
        """`function` of inputs of the `shapes`."""
        *leaves, upstream = (self.leaf(*shape, seed=seed) for seed, shape in enumerate(self.shapes))
        return Contestant(function, leaves, upstream.detach())


@lru_cache(maxsize=16)
def _draw(shape: tuple[int, ...], seed: int, device: str, dtype: torch.dtype) -> Tensor:
    """Kept, so that the problems of a cell share them."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@dataclass(frozen=True)
class Contestant:
    """One implementation applied to one problem.

    Attributes:
        function: of the leaves; gives the output.
        leaves: what it is differentiated for.
        upstream: gradient of the output.
        state_bytes: what is kept between calls.
        share: part of the work that a call does; its time and state are scaled up to all of it.
    """

    function: Callable[..., Tensor]
    leaves: Sequence[Tensor] = ()
    upstream: Tensor | None = None
    state_bytes: int = 0
    share: float = 1.0

    def forward(self) -> Tensor:
        """The output."""
        return self.function(*self.leaves)

    def call(self, mode: str) -> Callable[[], object]:
        """What is timed: the forward pass without a graph, or for `"training"` with the backward pass."""
        if mode == "training":
            return lambda: torch.autograd.grad(self.forward(), self.leaves, self.upstream)
        return torch.no_grad()(self.forward)


@dataclass(frozen=True)
class Peer:
    """Who may take part.

    Attributes:
        name: as tables give it and `--peers` takes it; `OURS` is what the others are compared with.
        build: problem -> contestant, or a `LeftOut` with the reason why there is none here; a function at the top of a
            module, or a `partial` of one, as another process calls it too.
        flops: problem -> useful operations of the forward pass; 0 where they are not counted.
        kinds: of the problems that it computes, or stands beside; all if empty.
        modes: in which it is timed; all if empty.
        packages: distributions whose versions belong beside the figures.
        computes: `SAME`, or the name of another function at the same sizes.
        reference: problem -> output. By default what the first peer of the same function gives, for ours the references
            of our operators.
        compiles: its first call at each size compiles.
        no_backward: why it does not train on a CPU.
        allowance: budgets that a call may take; ours has no limit.
    """

    name: str
    build: Callable[[Any], Contestant]
    flops: Callable[[Any], float] = lambda problem: 0.0
    kinds: tuple[str, ...] = ()
    modes: tuple[Mode, ...] = ()
    packages: tuple[str, ...] = ()
    computes: str = SAME
    reference: Callable[[Any], Tensor] | None = None
    compiles: bool = False
    no_backward: str = ""
    allowance: float = 1.0

    def solves(self, problem: Problem) -> bool:
        """Whether it takes part in a problem of this kind."""
        return not self.kinds or problem.kind in self.kinds

    def sees(self, problem: Problem) -> Problem:
        """What its contestant is made of: plain for another function."""
        return problem if self.computes == SAME else problem.plain()


@dataclass(frozen=True)
class Check:
    """Whether a peer computes what it claims, tried once on a small problem.

    Attributes:
        max_error: largest difference over the largest value, None when it does not take part.
        reason: why it does not.
    """

    peer: str
    kind: str
    computes: str
    max_error: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One contestant at one problem.

    Attributes:
        seconds: median of a call; None when it was left out.
        products: the same in matrix products of the same rounds.
        against_ours: its median over that of ours in the same rounds.
        rounds: lowest and highest ratio to ours among the rounds.
        of_matrix_rate: rate of useful operations over that of a matrix product in the same rounds.
        peak_bytes: memory at the worst moment beyond what was held before.
        state_bytes: what is kept between calls.
        skipped: why it was left out.
    """

    mode: str
    problem: Any
    peer: str
    computes: str = SAME
    seconds: float | None = None
    products: float | None = None
    against_ours: float | None = None
    rounds: tuple[float, float] | None = None
    of_matrix_rate: float | None = None
    peak_bytes: int | None = None
    state_bytes: int = 0
    skipped: str = ""


class Cell(NamedTuple):
    """Problems of one size whose contestants take turns."""

    mode: Mode
    problems: Sequence[Problem]


class Contest:
    """Measures cells, the cheap ones first: who exceeds the budget is not tried at what takes more.

    Args:
        peers: who may take part.
        rounds: timed calls of each contestant; the median counts.
        budget: seconds that a call of a peer may take.
        tick: told what runs now, and the share of a cell that is newly done.
        seconds: times a call.
    """

    def __init__(
        self,
        peers: Sequence[Peer],
        *,
        rounds: int = 5,
        budget: float = math.inf,
        tick: Callable[[str, float], None] = lambda running, share: None,
        seconds: Callable[[Callable[[], Any]], float] = seconds_of,
    ) -> None:
        self.seconds = seconds
        self.peers, self.rounds, self.budget, self.tick = peers, rounds, budget, tick
        self.checks: list[Check] = []
        self.apart = Apart()
        self._slow: dict[tuple[str, str, str], list[tuple[int, ...]]] = {}

    def check(self, problems: Iterable[Problem]) -> None:
        """Compare every peer with the first that computes the same, and that one with its reference."""
        for problem in problems:
            firsts: dict[str, Tensor] = {}
            for peer in (peer for peer in self.peers if peer.solves(problem)):
                self.tick(f"comparing {peer.name} with others, {problem.kind}", 0.0)
                self.checks.append(_check(peer, problem, firsts))

    def measure(self, cells: Iterable[Cell]) -> Iterator[list[Row]]:
        """The rows of one cell after the other."""
        try:
            for cell in cells:
                yield self._rows(cell)
                _draw.cache_clear()
        finally:
            self.apart.close(patience=1.0)

    def _rows(self, cell: Cell) -> list[Row]:
        unfit = {(check.peer, check.kind) for check in self.checks if check.reason}
        places = [
            (problem, peer, peer.sees(problem))
            for problem in cell.problems
            for peer in self.peers
            if peer.solves(problem) and cell.mode in (peer.modes or (cell.mode,))
            if (peer.name, problem.kind) not in unfit
        ]
        entries = {work: self._enter(*work, cell.mode) for work in dict.fromkeys(place[1:] for place in places)}
        calls = {work: entered.call(cell.mode) for work, (_, entered) in entries.items() if entered}
        seconds, product, operations = self._time(cell, calls)
        ours = {seen: times for (peer, seen), times in seconds.items() if peer.name == OURS}
        # a backward pass repeats each product of the forward pass once for either factor
        unit = operations / (3 if cell.mode == "training" else 1)
        rows = []
        for problem, peer, seen in places:
            row, entered = entries[peer, seen]
            if entered:
                times = [time / entered.share for time in seconds[peer, seen]]
                row = _finished(row, times, ours.get(problem, ()), product, peer.flops(seen) / unit)
                row = replace(row, state_bytes=round(entered.state_bytes / entered.share))
            rows.append(replace(row, problem=problem))
        return rows

    def _enter(self, peer: Peer, problem: Problem, mode: str) -> tuple[Row, Contestant | None]:
        """Tried in a process of its own, then built and called once here; None for who is left out."""
        self.tick(f"{peer.name}, {mode}, {problem.kind}, {problem.label}", 0.0)
        row = Row(mode, problem, peer.name, peer.computes, skipped=self._why_not(peer, problem, mode))
        try:
            if mode != "decode" and not row.skipped:
                limit = math.inf if peer.name == OURS else FIRST_CALL * self.budget * peer.allowance
                first = self.apart.first_call(peer.build, problem, mode, compiles=peer.compiles, limit=limit)
                if first.is_slow:
                    self._slow.setdefault((peer.name, problem.kind, mode), []).append(problem.size)
                row = replace(row, peak_bytes=first.peak_bytes, skipped=first.reason)
            if not row.skipped:
                contestant = peer.build(problem)
                contestant.call(mode)()
                return row, contestant
        except Exception as error:  # whatever goes wrong inside a peer is the reason why it is left out
            row = replace(row, skipped=brief(error))
        return row, None

    def _why_not(self, peer: Peer, problem: Problem, mode: str) -> str:
        if mode == "training" and problem.device == "cpu" and peer.no_backward:
            return peer.no_backward
        for size in self._slow.get((peer.name, problem.kind, mode), ()):
            if all(now >= then for now, then in zip(problem.size, size, strict=True)):
                return f"more than {self.budget * peer.allowance:g} s a call already at a smaller size"
        return ""

    def _time(
        self, cell: Cell, calls: Mapping[Any, Callable[[], object]]
    ) -> tuple[dict[Any, list[float]], float, float]:
        """The seconds of all rounds, the median of a matrix product in them, and its operations."""
        device = cell.problems[0].device
        size, dtype = (1024, torch.float32) if device == "cpu" else (4096, torch.bfloat16)
        share, running = 1 / (self.rounds * (len(calls) + 1)), f"timing, {cell.mode}, {cell.problems[0].label}"
        seconds = alternate(
            {**calls, "product": matrix_product(size, device=device, dtype=dtype)},
            self.rounds,
            warmup=0,
            lead_in=int(cell.mode == "decode"),
            after_call=lambda name: self.tick(running, share),
            seconds=self.seconds,
        )
        return seconds, statistics.median(seconds.pop("product")), 2.0 * size**3


def _check(peer: Peer, problem: Problem, firsts: dict[str, Tensor]) -> Check:
    """Compared with its reference, otherwise with the first of its function; the first one that agrees is kept."""
    check, seen = Check(peer.name, problem.kind, peer.computes), peer.sees(problem)
    try:
        with torch.no_grad():
            actual = peer.build(seen).forward().float().flatten()
            expected = firsts.get(peer.computes, actual)
            if peer.reference is not None:
                expected = peer.reference(seen).float().flatten()
            elif peer.name == OURS:
                with backend("reference"):
                    expected = peer.build(seen).forward().float().flatten()
        difference = float((actual - expected).abs().max() / expected.abs().max())
    except Exception as error:  # whatever goes wrong inside a peer is the reason why it is left out
        return replace(check, reason=brief(error))
    if difference <= problem.tolerance:
        firsts.setdefault(peer.computes, actual)
        return replace(check, max_error=difference)
    reason = f"computes another function: it differs by {difference:.1e} of the largest value"
    return replace(check, reason=reason)  # also when it is NaN


def _finished(row: Row, times: Sequence[float], ours: Sequence[float], product: float, useful: float) -> Row:
    """With its figures; a matrix product takes `product` seconds, and the `useful` work is that of so many."""
    seconds, ratios = statistics.median(times), [time / own for time, own in zip(times, ours)]
    return replace(
        row,
        seconds=seconds,
        products=seconds / product,
        against_ours=seconds / statistics.median(ours) if ours else None,
        rounds=(min(ratios), max(ratios)) if ratios else None,
        of_matrix_rate=useful * product / seconds,
    )
