"""`attensor bench relative`: kernelised attention with relative positions against softmax with the same bias."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.bench.contest import OURS, Cell, Contestant, Peer, Problem, reference
from attensor.bench.contestants.packages import FLEX_HAS_NO_BACKWARD, causal_blocks, heads_first
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

    def inputs(self, width: int, seed: int) -> Tensor:
        """[1, n, H, width]."""
        return self.leaf(1, self.length, self.num_heads, width, seed=seed)

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
            mask.masked_fill_(torch.ones(n, n, dtype=torch.bool).triu_(1), float("-inf"))
        return mask

    def contestant(self, attend: Any, *leaves: Tensor) -> Contestant:
        """`attend` of the leaves, of which the third are the values."""
        return Contestant.of(attend, leaves, self.draw(1, self.length, self.num_heads, self.width, seed=4))


def _ours(problem: RelativeProblem, algorithm: str | None = None) -> Contestant:
    features = (problem.inputs(problem.num_features, seed).detach().abs().requires_grad_() for seed in (5, 6))

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return relative_kernel_attention(q, k, v, relative_bias=bias, is_causal=problem.is_causal, algorithm=algorithm)

    return problem.contestant(attend, *features, problem.inputs(problem.width, 2), problem.bias)


def _softmax(problem: RelativeProblem, *, is_trained: bool = False) -> Contestant:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor = problem.mask) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    masks = [problem.mask.detach().requires_grad_()] if is_trained else []
    return problem.contestant(attend, *(problem.inputs(problem.width, seed) for seed in range(3)), *masks)


def _softmax_reference(problem: RelativeProblem) -> Tensor:
    q, k, v = (problem.inputs(problem.width, seed).detach() for seed in range(3))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * problem.width**-0.5
    return torch.einsum("bhij,bjhd->bihd", (scores + problem.mask).softmax(-1), v)


def _flex(problem: RelativeProblem) -> Contestant:
    from torch.nn.attention.flex_attention import flex_attention

    # or the sizes before would count against the number of recompilations, and those to come be dynamic
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, fullgraph=True)
    center, bias = problem.length - 1, problem.bias.detach()
    blocks = causal_blocks(problem.length) if problem.is_causal else None

    def add_bias(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias[head, j - i + center]

    attend = heads_first(partial(compiled, score_mod=add_bias, block_mask=blocks))
    # on a CPU it refuses whatever could be differentiated, even where nothing is
    return problem.contestant(attend, *(problem.inputs(problem.width, seed).detach() for seed in range(3)))


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
    Peer(TRAINED, partial(_softmax, is_trained=True), _softmax_flops, **_OTHER),
    Peer("flex", _flex, _softmax_flops, compiles=True, no_backward=FLEX_HAS_NO_BACKWARD, **_OTHER),
    Peer(OURS, _ours, _flops, packages=("attensor",), reference=reference(_ours)),
    Peer("ours, transforms", partial(_ours, algorithm="fft"), _flops),
    Peer("ours, tiles", partial(_ours, algorithm="tiles"), _flops),
)


def bench(options: BenchRelative) -> Bench:
    """The contest of the options."""
    small: list[Problem] = [RelativeProblem(256, 16, 16, order, options.num_heads) for order in (False, True)]
    suffix = "" if options.num_heads == 1 else f"-h{options.num_heads}"
    return Bench(PEERS, small, list(_cells(options)), HOW_TO_READ, suffix)


def _cells(options: BenchRelative) -> Iterator[Cell]:
    """Pairs of features and width that share a width are one cell, so that softmax attention is timed once for them."""
    pairs = dict.fromkeys(options.sizes)
    for mode in options.modes:
        names = tuple(peer.name for peer in PEERS if mode == "training" or peer.name != TRAINED)
        for width in dict.fromkeys(width for _, width in pairs):
            for is_causal in (False, True):
                for length in sorted(set(options.lengths)):
                    group = [
                        RelativeProblem(length, features, width, is_causal, options.num_heads)
                        for features, other in pairs
                        if other == width
                    ]
                    yield Cell(mode, group, names)
