"""`attensor bench softmax`: causal softmax attention against PyTorch's and the explicit product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attensor.bench.contest import OURS, Cell, Contestant, Peer, Problem
from attensor.bench.contestants.packages import sdpa
from attensor.bench.hold import Bench
from attensor.ops import softmax_attention

if TYPE_CHECKING:
    from attensor.commands.bench_softmax import BenchSoftmax

__all__ = ["PEERS", "SoftmaxProblem", "bench"]


@dataclass(frozen=True)
class SoftmaxProblem(Problem):
    """The last `queries` of `length` tokens; `num_heads` of them share `key_heads`."""

    queries: int
    length: int
    num_heads: int
    key_heads: int
    head_dim: int

    kind = property(lambda self: f"{self.num_heads} heads on {self.key_heads}")
    title = property(lambda self: f"causal, {self.kind} of width {self.head_dim}")
    series = property(lambda self: f"{self.kind}, {self.queries if self.queries < self.length else 'all'} queries")
    label = property(lambda self: f"{self.queries} on {self.length}")
    size = property(lambda self: (self.queries, self.length))

    @property
    def mask(self) -> Tensor:
        """[S, T]: what a query sees."""
        mask = torch.ones(self.queries, self.length, dtype=torch.bool, device=self.device)
        return mask.tril_(self.length - self.queries)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """q [1, S, H, D], k and v [1, T, G, D], out as q."""
        q, k = (self.queries, self.num_heads), (self.length, self.key_heads)
        return tuple((1, *sizes, self.head_dim) for sizes in (q, k, k, q))


def _ours(problem: SoftmaxProblem) -> Contestant:
    return problem.contestant(lambda q, k, v: softmax_attention(q, k, v, is_causal=True))


def _sdpa(problem: SoftmaxProblem) -> Contestant:
    is_square = problem.queries == problem.length  # where it aligns top-left it needs a mask
    limits: dict[str, Any] = {"is_causal": True} if is_square else {"attn_mask": problem.mask}
    is_shared = problem.num_heads != problem.key_heads
    return problem.contestant(lambda q, k, v: sdpa(q, k, v, enable_gqa=is_shared, **limits))


def _product(problem: SoftmaxProblem) -> Contestant:
    hidden = ~problem.mask

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q.view(1, problem.queries, problem.key_heads, -1, problem.head_dim)  # [1, S, G, R, D]
        scores = torch.einsum("bigrd,bjgd->bgrij", q * problem.head_dim**-0.5, k).masked_fill(hidden, float("-inf"))
        return torch.einsum("bgrij,bjgd->bigrd", scores.softmax(-1), v).flatten(2, 3)

    return problem.contestant(attend)


def _flops(problem: SoftmaxProblem) -> float:
    pairs = problem.queries * (problem.length - (problem.queries - 1) / 2)
    return 4 * pairs * problem.num_heads * problem.head_dim


PEERS = (
    Peer(OURS, _ours, _flops, packages=("attensor",)),
    Peer("sdpa", _sdpa, _flops, packages=("torch",)),
    Peer("explicit product", _product, _flops, packages=("torch",)),
)


def bench(options: BenchSoftmax) -> Bench:
    """The contest of the options."""
    cells, small = list[Cell](), list[Problem]()
    for heads in options.heads:
        small.append(SoftmaxProblem(5, 32, *heads, options.head_dim, device=options.device))
        for length in sorted(options.lengths):
            for queries in sorted({min(queries, length) for queries in options.queries}):
                problem = SoftmaxProblem(queries, length, *heads, options.head_dim, device=options.device)
                cells += [Cell("forward", [problem]), Cell("training", [problem])]
    note = "Queries are the last of the sequence. Useful operations: 4 D for each key that a query sees."
    return Bench(PEERS, small, cells, note)
