"""A contest: one problem and its peers, who must agree before they are timed against each other in turn.

A benchmark is a problem and its peers, nothing else. A peer says how to make a contestant of a problem, or why it
cannot. `Contest` compares what they compute, calls each once in a process of its own (its peak memory, and an end for
who takes too long), then times all of a cell in alternating rounds, the matrix product among them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, Self

import torch
from torch import Tensor

from attensor.bench.apart import Apart, brief
from attensor.bench.machine import matrix_product
from attensor.bench.timing import alternate
from attensor.ops import backend

__all__ = ["OURS", "SAME", "Cell", "Check", "Contest", "Contestant", "Mode", "Peer", "Problem", "Row", "reference"]

Mode = Literal["forward", "training", "decode"]
OURS = "ours"
SAME = "the same function"
# A backward pass repeats each product of the forward pass once for either factor.
PASSES = {"forward": 1, "training": 3, "decode": 1}
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
        input_bytes: to which the peak is compared; 0 where that means nothing.
        tolerance: largest error, relative to the largest output, that still is the same function.
        dtype: of the inputs.
    """

    device: str = field(default="cpu", kw_only=True)

    title = property(lambda self: "")
    size = property(lambda self: (1,))
    kind = property(lambda self: "all")
    series = property(lambda self: self.title)
    label = property(lambda self: str(self.size[-1]))
    tokens = property(lambda self: 0)
    input_bytes = property(lambda self: 0)
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


@lru_cache(maxsize=16)
def _draw(shape: tuple[int, ...], seed: int, device: str, dtype: torch.dtype) -> Tensor:
    """Kept, so that the problems of a cell share them."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@dataclass(frozen=True)
class Contestant:
    """One implementation applied to one problem.

    Attributes:
        forward: the output.
        leaves: what it is differentiated for.
        upstream: gradient of the output.
        state_bytes: what is kept between calls.
        share: part of the work that a call does; its time and state are scaled up to all of it.
    """

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...] = ()
    upstream: Tensor | None = None
    state_bytes: int = 0
    share: float = 1.0

    @classmethod
    def of(cls, function: Callable[..., Tensor], leaves: Iterable[Tensor], upstream: Tensor) -> Contestant:
        """`function` of the leaves."""
        inputs = tuple(leaves)
        return cls(lambda: function(*inputs), inputs, upstream)

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
        flops: problem -> useful operations of the forward pass.
        kinds: of the problems that it computes, or stands beside; all if empty.
        packages: distributions whose versions belong beside the figures.
        computes: `SAME`, or the name of another function at the same sizes.
        reference: problem -> output; by default what the first peer of the same function gives.
        compiles: its first call at each size compiles.
        no_backward: why it does not train on a CPU.
        allowance: budgets that a call may take; ours has no limit.
    """

    name: str
    build: Callable[[Any], Contestant]
    flops: Callable[[Any], float]
    kinds: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    computes: str = SAME
    reference: Callable[[Any], Tensor] | None = None
    compiles: bool = False
    no_backward: str = ""
    allowance: float = 1.0

    def solves(self, problem: Problem) -> bool:
        """Whether it takes part in a problem of this kind."""
        return not self.kinds or problem.kind in self.kinds


def reference(build: Callable[[Any], Contestant]) -> Callable[[Any], Tensor]:
    """Problem -> what the contestant computes by the references of our operators."""

    def forward(problem: Any) -> Tensor:
        with backend("reference"), torch.no_grad():
            return build(problem).forward()

    return forward


@dataclass(frozen=True)
class Check:
    """Whether a peer computes what it claims, tried once on a small problem.

    Attributes:
        peer: its name.
        kind: of the problem.
        computes: as the peer has it.
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


@dataclass(frozen=True)
class Cell:
    """Problems of one size whose contestants take turns; only the peers of these names, all if empty."""

    mode: Mode
    problems: Sequence[Problem]
    only: tuple[str, ...] = ()


@dataclass
class _Entry:
    peer: Peer
    row: Row
    contestant: Contestant | None = None
    call: Callable[[], object] | None = None
    seconds: Sequence[float] = ()


class Contest:
    """Measures cells, the cheap ones first: who exceeds the budget is not tried at what takes more.

    Args:
        peers: who may take part.
        rounds: timed calls of each contestant; the median counts.
        budget: seconds that a call of a peer may take.
        tick: told what runs now, and the share of a cell that is newly done.
    """

    def __init__(
        self,
        peers: Sequence[Peer],
        *,
        rounds: int = 5,
        budget: float = math.inf,
        tick: Callable[[str, float], None] = lambda running, share: None,
    ) -> None:
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
        entries: dict[tuple[str, Problem], _Entry] = {}
        places: list[tuple[Problem, _Entry]] = []
        for problem in cell.problems:
            for peer in self.peers:
                is_chosen = peer.solves(problem) and (not cell.only or peer.name in cell.only)
                if is_chosen and (peer.name, problem.kind) not in unfit:
                    seen = problem if peer.computes == SAME else problem.plain()
                    if (peer.name, seen) not in entries:
                        entries[peer.name, seen] = self._enter(peer, seen, cell.mode)
                    places.append((problem, entries[peer.name, seen]))
        product = self._time(cell, [entry for entry in entries.values() if entry.call])
        ours = {problem: entry.seconds for (name, problem), entry in entries.items() if name == OURS}
        return [_finished(entry, problem, ours.get(problem, ()), product) for problem, entry in places]

    def _enter(self, peer: Peer, problem: Problem, mode: str) -> _Entry:
        """Tried in a process of its own, then built and called once here."""
        self.tick(f"{peer.name}, {mode}, {problem.kind}, {problem.label}", 0.0)
        entry = _Entry(peer, Row(mode, problem, peer.name, peer.computes, skipped=self._why_not(peer, problem, mode)))
        try:
            if mode != "decode" and not entry.row.skipped:
                limit = math.inf if peer.name == OURS else FIRST_CALL * self.budget * peer.allowance
                first = self.apart.first_call(peer.build, problem, mode, compiles=peer.compiles, limit=limit)
                if first.is_slow:
                    self._slow.setdefault((peer.name, problem.kind, mode), []).append(problem.size)
                entry.row = replace(entry.row, peak_bytes=first.peak_bytes, skipped=first.reason)
            if not entry.row.skipped:
                entry.contestant = peer.build(problem)
                call = entry.contestant.call(mode)
                call()
                entry.call = call
        except Exception as error:  # whatever goes wrong inside a peer is the reason why it is left out
            entry.row = replace(entry.row, skipped=brief(error))
        return entry

    def _why_not(self, peer: Peer, problem: Problem, mode: str) -> str:
        if mode == "training" and problem.device == "cpu" and peer.no_backward:
            return peer.no_backward
        for size in self._slow.get((peer.name, problem.kind, mode), ()):
            if all(now >= then for now, then in zip(problem.size, size, strict=True)):
                return f"more than {self.budget * peer.allowance:g} s a call already at a smaller size"
        return ""

    def _time(self, cell: Cell, entries: Sequence[_Entry]) -> tuple[float, float]:
        """Fill in the seconds of all rounds; the median seconds of a matrix product and its operations."""
        device = cell.problems[0].device
        size, dtype = (1024, torch.float32) if device == "cpu" else (4096, torch.bfloat16)
        calls: dict[str, Callable[[], object]] = {str(i): entry.call for i, entry in enumerate(entries) if entry.call}
        calls["product"] = matrix_product(size, device=device, dtype=dtype)
        share, running = 1 / (self.rounds * len(calls)), f"timing, {cell.mode}, {cell.problems[0].label}"
        lead_in = int(cell.mode == "decode")
        seconds = alternate(
            calls, self.rounds, warmup=0, lead_in=lead_in, after_call=lambda name: self.tick(running, share)
        )
        for i, entry in enumerate(entries):
            entry.seconds = seconds[str(i)]
        return statistics.median(seconds["product"]), 2.0 * size**3


def _check(peer: Peer, problem: Problem, firsts: dict[str, Tensor]) -> Check:
    """Compared with its reference, otherwise with the first of its function; the first one that agrees is kept."""
    check = Check(peer.name, problem.kind, peer.computes)
    try:
        with torch.no_grad():
            actual = peer.build(problem).forward().float().flatten()
            expected = firsts.get(peer.computes, actual)
            if peer.reference is not None:
                expected = peer.reference(problem).float().flatten()
        difference = float((actual - expected).abs().max() / expected.abs().max())
    except Exception as error:  # whatever goes wrong inside a peer is the reason why it is left out
        return replace(check, reason=brief(error))
    if difference <= problem.tolerance:
        firsts.setdefault(peer.computes, actual)
        return replace(check, max_error=difference)
    reason = f"computes another function: it differs by {difference:.1e} of the largest value"
    return replace(check, reason=reason)  # also when it is NaN


def _finished(entry: _Entry, problem: Problem, ours: Sequence[float], product: tuple[float, float]) -> Row:
    row = replace(entry.row, problem=problem)
    if not entry.seconds or entry.contestant is None:
        return row
    theirs = [time / entry.contestant.share for time in entry.seconds]
    seconds, ratios = statistics.median(theirs), [time / own for time, own in zip(theirs, ours)]
    return replace(
        row,
        seconds=seconds,
        products=seconds / product[0],
        against_ours=seconds / statistics.median(ours) if ours else None,
        rounds=(min(ratios), max(ratios)) if ratios else None,
        of_matrix_rate=PASSES[row.mode] * entry.peer.flops(entry.row.problem) / seconds * product[0] / product[1],
        state_bytes=round(entry.contestant.state_bytes / entry.contestant.share),
    )
