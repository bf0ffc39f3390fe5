"""`attensor bench softmax`: causal softmax attention against PyTorch's and the explicit product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.bench.contest import OURS, Cell, Contestant, Peer, Problem, reference
from attensor.bench.hold import Bench
from attensor.ops import softmax_attention


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

    def contestant(self, attend: Callable[..., Tensor]) -> Contestant:
        """`attend` of q [1, S, H, D], k and v [1, T, G, D], and the mask [S, T] of what a query sees."""
        mask = torch.ones(self.queries, self.length, dtype=torch.bool, device=self.device)
        mask = mask.tril_(self.length - self.queries)
        q = self.leaf(1, self.queries, self.num_heads, self.head_dim, seed=0)
        k, v = (self.leaf(1, self.length, self.key_heads, self.head_dim, seed=seed) for seed in (1, 2))
        return Contestant.of(lambda q, k, v: attend(q, k, v, mask), (q, k, v), self.draw(*q.shape, seed=3))


def _ours(problem: SoftmaxProblem) -> Contestant:
    return problem.contestant(lambda q, k, v, mask: softmax_attention(q, k, v, is_causal=True))


def _sdpa(problem: SoftmaxProblem) -> Contestant:
    is_square = problem.queries == problem.length  # where it aligns top-left it needs a mask

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        limits: dict[str, Any] = {"is_causal": True} if is_square else {"attn_mask": mask}
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **limits)
        return out.transpose(1, 2)

    return problem.contestant(attend)


def _product(problem: SoftmaxProblem) -> Contestant:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        q = q.view(1, problem.queries, problem.key_heads, -1, problem.head_dim)  # [1, S, G, R, D]
        scores = torch.einsum("bigrd,bjgd->bgrij", q * problem.head_dim**-0.5, k).masked_fill(~mask, float("-inf"))
        return torch.einsum("bgrij,bjgd->bigrd", scores.softmax(-1), v).flatten(2, 3)

    return problem.contestant(attend)


def _flops(problem: SoftmaxProblem) -> float:
    pairs = problem.queries * (problem.length - (problem.queries - 1) / 2)
    return 4 * pairs * problem.num_heads * problem.head_dim


PEERS = (
    Peer(OURS, _ours, _flops, packages=("attensor",), reference=reference(_ours)),
    Peer("sdpa", _sdpa, _flops, packages=("torch",)),
    Peer("explicit product", _product, _flops, packages=("torch",)),
)


def bench(options: Any) -> Bench:
    """The contest of the options."""
    cells, small = list[Cell](), list[Problem]()
    for heads, key_heads in options.heads:
        sizes = {"num_heads": heads, "key_heads": key_heads, "head_dim": options.head_dim, "device": options.device}
        small.append(SoftmaxProblem(5, 32, **sizes))
        for length in sorted(options.lengths):
            for queries in sorted({min(queries, length) for queries in options.queries}):
                problem = SoftmaxProblem(queries, length, **sizes)
                cells += [Cell("forward", [problem]), Cell("training", [problem])]
    note = "Queries are the last of the sequence. Useful operations: 4 D for each key that a query sees."
    return Bench(PEERS, small, cells, note)
