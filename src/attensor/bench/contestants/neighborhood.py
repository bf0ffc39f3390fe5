"""`attensor bench neighborhood`: neighbourhood attention against the ways of getting it without a kernel.

The contestants are a gather of each query's own keys (what `unfold` gives), dense attention under a boolean mask, and
NATTEN where it is installed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attensor.bench.contest import OURS, Cell, Contestant, Peer, Problem
from attensor.bench.contestants.packages import load, sdpa
from attensor.bench.hold import Bench
from attensor.ops import neighborhood_attention

if TYPE_CHECKING:
    from attensor.commands.bench_neighborhood import BenchNeighborhood

__all__ = ["PEERS", "NeighborhoodProblem", "bench"]

HOW_TO_READ = "B = 1. Useful operations: the two products over the window, nothing for keys that are masked."


@dataclass(frozen=True)
class NeighborhoodProblem(Problem):
    """A square grid, a square window, heads; q, k, v and out are [1, side, side, H, D]."""

    side: int
    window_size: int
    num_heads: int = 4
    head_dim: int = 32

    title = property(lambda self: f"{self.side} x {self.side}, {self.num_heads} heads of {self.head_dim}")
    label = property(lambda self: f"window {self.window_size}")
    size = property(lambda self: (self.side, self.window_size))
    shapes = property(lambda self: [(1, self.side, self.side, self.num_heads, self.head_dim)] * 4)

    @property
    def neighbours(self) -> Tensor:
        """[T, W]: which tokens each token of the grid attends to; windows are shifted inwards at the border."""
        side, window = self.side, self.window_size
        start = (torch.arange(side, device=self.device) - window // 2).clamp(0, side - window)
        axis = start[:, None] + torch.arange(window, device=self.device)  # [side, window]
        tokens = axis[:, None, :, None] * side + axis[None, :, None, :]  # [side, side, window, window]
        return tokens.reshape(side * side, window**2)


def _ours(problem: NeighborhoodProblem) -> Contestant:
    return problem.contestant(lambda q, k, v: neighborhood_attention(q, k, v, window_size=problem.window_size))


def _gather(problem: NeighborhoodProblem) -> Contestant:
    """A copy of each query's keys and values."""

    def attend(*tensors: Tensor) -> Tensor:
        keys_of = problem.neighbours  # [T, W]
        q, k, v = (x.flatten(0, 2) for x in tensors)  # [T, H, D]
        weights = torch.einsum("thd,twhd->thw", q * problem.head_dim**-0.5, k[keys_of]).softmax(-1)
        return torch.einsum("thw,twhd->thd", weights, v[keys_of]).view_as(tensors[0])

    return problem.contestant(attend)


def _dense(problem: NeighborhoodProblem) -> Contestant:
    neighbours = problem.neighbours
    mask = neighbours.new_zeros(len(neighbours), len(neighbours), dtype=torch.bool).scatter_(1, neighbours, True)

    def attend(*tensors: Tensor) -> Tensor:
        return sdpa(*(x.flatten(1, 2) for x in tensors), attn_mask=mask).reshape(tensors[0].shape)

    return problem.contestant(attend)


def _natten(problem: NeighborhoodProblem) -> Contestant:
    natten = load("natten", "natten")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FlexAttention's advice to compile, which NATTEN itself forbids on a CPU
            out: Tensor = natten.na2d(*(x.detach() for x in (q, k, v)), kernel_size=problem.window_size)
            return out

    return problem.contestant(attend)


def _flops(problem: NeighborhoodProblem) -> float:
    return 4.0 * problem.side**2 * problem.window_size**2 * problem.num_heads * problem.head_dim


PEERS = (
    Peer(OURS, _ours, _flops, packages=("attensor",)),
    Peer("gather", _gather, _flops),
    Peer("dense SDPA (masked)", _dense, _flops, packages=("torch",)),
    Peer("natten (FlexAttention)", _natten, _flops, packages=("natten",), no_backward="natten trains on a GPU only"),
)


def bench(options: BenchNeighborhood) -> Bench:
    """The contest of the options."""
    first = options.grids[0][0]
    grids = [NeighborhoodProblem(*sizes, device=options.device) for sizes in options.grids]
    others = [NeighborhoodProblem(first, window, device=options.device) for window in options.windows]
    forward = sorted(dict.fromkeys([*others, *grids]), key=lambda problem: problem.size)
    cells = [Cell("forward", [problem]) for problem in forward] + [Cell("training", [problem]) for problem in grids]
    return Bench(PEERS, [NeighborhoodProblem(7, 5, 2, 16, device=options.device)], cells, HOW_TO_READ)
