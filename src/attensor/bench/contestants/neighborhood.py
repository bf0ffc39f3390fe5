"""`attensor bench neighborhood`: neighbourhood attention against the ways of getting it without a kernel.

The contestants are a gather of each query's own keys (what `unfold` gives), dense attention under a boolean mask, and
NATTEN where it is installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.bench.contest import OURS, Cell, Contestant, Peer, Problem, reference
from attensor.bench.contestants.packages import load
from attensor.bench.hold import Bench
from attensor.ops import neighborhood_attention

if TYPE_CHECKING:
    from attensor.commands.bench_neighborhood import BenchNeighborhood

__all__ = ["PEERS", "NeighborhoodProblem", "bench"]

HOW_TO_READ = "B = 1. Useful operations: the two products over the window, nothing for keys that are masked."


@dataclass(frozen=True)
class NeighborhoodProblem(Problem):
    """A square grid, a square window, heads."""

    side: int
    window_size: int
    num_heads: int = 4
    head_dim: int = 32

    title = property(lambda self: f"{self.side} x {self.side}, {self.num_heads} heads of {self.head_dim}")
    label = property(lambda self: f"window {self.window_size}")
    size = property(lambda self: (self.side, self.window_size))

    @property
    def neighbours(self) -> Tensor:
        """[T, W]: which tokens each token of the grid attends to; windows are shifted inwards at the border."""
        side, window = self.side, self.window_size
        start = (torch.arange(side) - window // 2).clamp(0, side - window)
        axis = start[:, None] + torch.arange(window)  # [side, window]
        tokens = axis[:, None, :, None] * side + axis[None, :, None, :]  # [side, side, window, window]
        return tokens.reshape(side * side, window**2)

    def contestant(self, attend: Callable[..., Tensor]) -> Contestant:
        """`attend` of q, k, v, [1, side, side, H, D] each."""
        shape = (1, self.side, self.side, self.num_heads, self.head_dim)
        leaves = (self.leaf(*shape, seed=seed) for seed in range(3))
        return Contestant.of(attend, leaves, self.draw(*shape, seed=3))


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
    tokens = problem.side**2
    mask = torch.zeros(tokens, tokens, dtype=torch.bool).scatter_(1, problem.neighbours, True)

    def attend(*tensors: Tensor) -> Tensor:
        q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in tensors)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(tensors[0].shape)

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
    Peer(OURS, _ours, _flops, packages=("attensor",), reference=reference(_ours)),
    Peer("gather", _gather, _flops),
    Peer("dense SDPA, masked", _dense, _flops, packages=("torch",)),
    Peer("natten (FlexAttention)", _natten, _flops, packages=("natten",), no_backward="natten trains on a GPU only"),
)


def bench(options: BenchNeighborhood) -> Bench:
    """The contest of the options."""
    side = options.grids[0][0]
    forward = dict.fromkeys([*((side, window) for window in options.windows), *options.grids])
    cells = [Cell("forward", [NeighborhoodProblem(*sizes)]) for sizes in sorted(forward)]
    cells += [Cell("training", [NeighborhoodProblem(*sizes)]) for sizes in options.grids]
    return Bench(PEERS, [NeighborhoodProblem(7, 5, 2, 16)], cells, HOW_TO_READ)
