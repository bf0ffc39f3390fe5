"""`attensor bench neighborhood`: neighbourhood attention against the ways of getting it without a kernel.

The contestants are a gather of each query's own keys (what `unfold` gives), dense attention under a boolean mask, and
NATTEN where it is installed. Ours is also held against itself: on a grid of twice the side, and with other windows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attensor.bench.contest import OURS, Cell, Contestant, Mode, Peer, Problem, Row
from attensor.bench.contestants.packages import load, sdpa
from attensor.bench.hold import Bench
from attensor.bench.layout import Table
from attensor.bench.tables import MODES, digits
from attensor.ops import neighborhood_attention

if TYPE_CHECKING:
    from attensor.commands.bench_neighborhood import BenchNeighborhood

__all__ = ["PEERS", "NeighborhoodProblem", "bench", "growth_table"]

HOW_TO_READ = "B = 1. Useful operations: the two products over the window, nothing for keys that are masked."
_COMPARED, _ALONE = "all", "ours alone"


@dataclass(frozen=True)
class NeighborhoodProblem(Problem):
    """A line or a square grid, as long a window along each axis, heads; q, k, v and out are [1, *space, H, D]."""

    side: int
    window_size: int
    num_heads: int = 4
    head_dim: int = 32
    rank: int = 2
    is_alone: bool = False

    kind = property(lambda self: _ALONE if self.is_alone else _COMPARED)
    space = property(lambda self: (self.side,) * self.rank)
    title = property(lambda self: f"{' x '.join(map(str, self.space))}, {self.num_heads} heads of {self.head_dim}")
    label = property(lambda self: f"window {self.window_size}")
    size = property(lambda self: (self.tokens, self.window_size))
    tokens = property(lambda self: self.side**self.rank)
    shapes = property(lambda self: [(1, *self.space, self.num_heads, self.head_dim)] * 4)

    @property
    def neighbours(self) -> Tensor:
        """[T, W]: which tokens each token of the grid attends to; windows are shifted inwards at the border."""
        side, window = self.side, self.window_size
        start = (torch.arange(side, device=self.device) - window // 2).clamp(0, side - window)
        axis = start[:, None] + torch.arange(window, device=self.device)  # [side, window]
        if self.rank == 1:
            return axis
        tokens = axis[:, None, :, None] * side + axis[None, :, None, :]  # [side, side, window, window]
        return tokens.reshape(side * side, window**2)


def _ours(problem: NeighborhoodProblem) -> Contestant:
    return problem.contestant(lambda q, k, v: neighborhood_attention(q, k, v, window_size=problem.window_size))


def _gather(problem: NeighborhoodProblem) -> Contestant:
    """A copy of each query's keys and values."""

    def attend(*tensors: Tensor) -> Tensor:
        keys_of = problem.neighbours  # [T, W]
        q, k, v = (x.flatten(0, -3) for x in tensors)  # [T, H, D]
        weights = torch.einsum("thd,twhd->thw", q * problem.head_dim**-0.5, k[keys_of]).softmax(-1)
        return torch.einsum("thw,twhd->thd", weights, v[keys_of]).view_as(tensors[0])

    return problem.contestant(attend)


def _dense(problem: NeighborhoodProblem) -> Contestant:
    neighbours = problem.neighbours
    mask = neighbours.new_zeros(len(neighbours), len(neighbours), dtype=torch.bool).scatter_(1, neighbours, True)

    def attend(*tensors: Tensor) -> Tensor:
        return sdpa(*(x.flatten(1, -3) for x in tensors), attn_mask=mask).reshape(tensors[0].shape)

    return problem.contestant(attend)


def _natten(problem: NeighborhoodProblem) -> Contestant:
    natten = load("natten", "natten")
    function = natten.na1d if problem.rank == 1 else natten.na2d

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FlexAttention's advice to compile, which NATTEN itself forbids on a CPU
            out: Tensor = function(*(x.detach() for x in (q, k, v)), kernel_size=problem.window_size)
            return out

    return problem.contestant(attend)


def _flops(problem: NeighborhoodProblem) -> float:
    return float(4 * problem.tokens * problem.window_size**problem.rank * problem.num_heads * problem.head_dim)


PEERS = (
    Peer(OURS, _ours, _flops, packages=("attensor",)),
    Peer("gather", _gather, _flops, kinds=(_COMPARED,)),
    Peer("dense SDPA (masked)", _dense, _flops, kinds=(_COMPARED,), packages=("torch",)),
    Peer(
        "natten (FlexAttention)",
        _natten,
        _flops,
        kinds=(_COMPARED,),
        packages=("natten",),
        no_backward="natten trains on a GPU only",
    ),
)


def bench(options: BenchNeighborhood) -> Bench:
    """The contest of the options."""
    device = options.device
    lines = [NeighborhoodProblem(*sizes, rank=1, device=device) for sizes in options.lines]
    grids = [NeighborhoodProblem(*sizes, device=device) for sizes in options.grids]
    others = [replace(grids[0], window_size=window) for window in options.windows]
    # in turns with the first grid, so that the time of a token can be compared
    wide = replace(grids[0], side=2 * grids[0].side, is_alone=True)
    forward = sorted(dict.fromkeys([*lines, *others, *grids]), key=lambda problem: problem.size)
    training = sorted([*lines, *grids], key=lambda problem: problem.size)
    passes: tuple[tuple[Mode, list[NeighborhoodProblem]], ...] = (("forward", forward), ("training", training))
    cells = [
        Cell(mode, [problem, wide] if problem == grids[0] else [problem])
        for mode, problems in passes
        for problem in problems
    ]
    small = [NeighborhoodProblem(7, 5, 2, 16, device=device)]
    return Bench(PEERS, small, cells, HOW_TO_READ, findings=growth_table)


def growth_table(rows: Sequence[Row]) -> Iterator[Table]:
    """How ours grows: the time of a token with the grid, and memory with the window; nothing if nothing was measured.

    Args:
        rows: of all contestants.
    """
    table = Table(
        "how ours grows",
        ("of ours", "from", "to", "ratio"),
        note="Time that is linear in the tokens, and memory that does not depend on the window, have the ratio 1.",
    )
    ours = [row for row in rows if row.peer == OURS and not row.skipped]
    for wide in (row for row in ours if row.problem.is_alone):
        small = next(row for row in ours if row.mode == wide.mode and _is_half(row.problem, wide.problem))
        of_token = [(row.seconds or 0.0) / row.problem.tokens for row in (small, wide)]
        places = [row.problem.title.partition(",")[0] for row in (small, wide)]
        table.rows.append((f"time of a token, {MODES[wide.mode]}", *places, f"{digits(of_token[1] / of_token[0])}x"))
        if wide.mode == "forward":
            alike = [row for row in ours if row.mode == "forward" and row.problem.title == small.problem.title]
            alike.sort(key=lambda row: row.peak_bytes or 0)
            labels = [row.problem.label for row in (alike[0], alike[-1])]
            ratio = (alike[-1].peak_bytes or 0) / max(1, alike[0].peak_bytes or 0)
            table.rows.append((f"peak memory, {MODES[wide.mode]}, {places[0]}", *labels, f"{digits(ratio)}x"))
    if table.rows:
        yield table


def _is_half(small: NeighborhoodProblem, wide: NeighborhoodProblem) -> bool:
    """Whether a problem is that with half the side."""
    return replace(small, side=2 * small.side, is_alone=True) == wide
