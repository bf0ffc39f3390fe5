"""`attensor bench relative`: kernelised attention with relative positions against softmax with the same bias."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attensor.bench.contest import OURS, Cell, Contestant, Peer, Problem
from attensor.bench.contestants.packages import FLEX, causal_blocks, flex, sdpa
from attensor.bench.hold import Bench
from attensor.ops import relative_kernel_attention

if TYPE_CHECKING:
    from attensor.commands.bench_relative import BenchRelative

__all__ = ["PEERS", "RelativeProblem", "bench"]

SOFTMAX, TRAINED = "softmax", "softmax, bias trained"
HOW_TO_READ = (
    "Softmax attention gets the same bias as a float mask [1, H, n, n] and queries and keys as wide as the values; "
    "ours gets features that are not negative; making these is not in the time. Forward + backward: ours gives the "
    f"gradients of q, k, v and the bias [H, 2 n - 1]; '{SOFTMAX}' those of q, k, v alone, because PyTorch's fused "
    f"kernel has none for a mask; '{TRAINED}' that of the mask too, without the fused kernel. Useful operations are "
    "2 n^2 (features + width) a head, 4 n^2 width for softmax, half of it if causal; transforms are credited with the "
    "same, do fewer, and may pass 100 %."
)


@dataclass(frozen=True)
class RelativeProblem(Problem):
    """n tokens with M features, heads of width V, and a bias of every offset; the same numbers for all contestants."""

    length: int
    num_features: int
    width: int
    is_causal: bool
    num_heads: int = 1

    kind = property(lambda self: "causal" if self.is_causal else "bidirectional")
    size = property(lambda self: (self.num_features, self.width, self.length))

    @property
    def title(self) -> str:
        """Order, features and heads."""
        heads = f"{self.num_heads} head{'s' * (self.num_heads > 1)} of width {self.width}"
        return f"{self.kind}: {self.num_features} features, {heads}"

    def plain(self) -> RelativeProblem:
        """Softmax attention has no features."""
        return replace(self, num_features=0)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """q, k, v and out of softmax attention, [1, n, H, V] each."""
        return ((1, self.length, self.num_heads, self.width),) * 4

    @cached_property
    def bias(self) -> Tensor:
        """b of offset key - query at entry key - query + n - 1, [H, 2 n - 1]."""
        return self.leaf(self.num_heads, 2 * self.length - 1, seed=3)

    @cached_property
    def mask(self) -> Tensor:
        """The bias of every query and key, -inf after the query if causal, [1, H, n, n]."""
        n = self.length
        mask = self.bias.detach().unfold(1, n, 1).flip(1)[None]
        if self.is_causal:
            mask.masked_fill_(mask.new_ones(n, n, dtype=torch.bool).triu_(1), float("-inf"))
        return mask


def _ours(problem: RelativeProblem, algorithm: str | None = None) -> Contestant:
    soft, size = problem.contestant(sdpa), (1, problem.length, problem.num_heads, problem.num_features)
    features = (problem.draw(*size, seed=seed).abs().requires_grad_() for seed in (5, 6))

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return relative_kernel_attention(q, k, v, relative_bias=bias, is_causal=problem.is_causal, algorithm=algorithm)

    return Contestant(attend, (*features, soft.leaves[2], problem.bias), soft.upstream)


def _softmax(problem: RelativeProblem) -> Contestant:
    return problem.contestant(partial(sdpa, attn_mask=problem.mask))


def _softmax_trained(problem: RelativeProblem) -> Contestant:
    soft = _softmax(problem)
    leaves = (*soft.leaves, problem.mask.detach().requires_grad_())
    return Contestant(lambda q, k, v, mask: sdpa(q, k, v, attn_mask=mask), leaves, soft.upstream)


def _softmax_reference(problem: RelativeProblem) -> Tensor:
    q, k, v = problem.contestant(sdpa).leaves
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * problem.width**-0.5
    return torch.einsum("bhij,bjhd->bihd", (scores + problem.mask).softmax(-1), v)


def _flex(problem: RelativeProblem) -> Contestant:
    center, bias = problem.length - 1, problem.bias.detach()
    blocks = causal_blocks(problem.length, problem.device) if problem.is_causal else None

    def add_bias(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias[head, j - i + center]

    return problem.contestant(flex(score_mod=add_bias, block_mask=blocks))


def _flops(problem: RelativeProblem) -> float:
    return 2.0 * _pairs(problem) * (problem.num_features + problem.width)


def _softmax_flops(problem: RelativeProblem) -> float:
    return 4.0 * _pairs(problem) * problem.width


def _pairs(problem: RelativeProblem) -> float:
    return problem.num_heads * problem.length**2 / (2 if problem.is_causal else 1)


_OTHER: dict[str, Any] = {
    "computes": "softmax attention, same bias",
    "reference": _softmax_reference,
    "packages": ("torch",),
}
PEERS = (
    Peer(SOFTMAX, _softmax, _softmax_flops, allowance=2.0, **_OTHER),
    Peer(TRAINED, _softmax_trained, _softmax_flops, modes=("training",), **_OTHER),
    Peer("flex", _flex, _softmax_flops, **FLEX, **_OTHER),
    Peer(OURS, _ours, _flops, packages=("attensor",)),
    Peer("ours, transforms", partial(_ours, algorithm="fft"), _flops),
    Peer("ours, tiles", partial(_ours, algorithm="tiles"), _flops),
)


def bench(options: BenchRelative) -> Bench:
    """The contest of the options; pairs of features and width that share a width are one cell, softmax one for all."""
    heads: dict[str, Any] = {"num_heads": options.num_heads, "device": options.device}
    small = [RelativeProblem(256, 16, 16, is_causal, **heads) for is_causal in (False, True)]
    widths: dict[int, list[int]] = {}
    for features, width in dict.fromkeys(options.sizes):
        widths.setdefault(width, []).append(features)
    cells = [
        Cell(mode, [RelativeProblem(length, number, width, is_causal, **heads) for number in features])
        for mode in options.modes
        for width, features in widths.items()
        for is_causal in (False, True)
        for length in sorted(set(options.lengths))
    ]
    return Bench(PEERS, small, cells, HOW_TO_READ, "" if options.num_heads == 1 else f"-h{options.num_heads}")
