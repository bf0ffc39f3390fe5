"""The inputs at one size, and the contestants: functions that turn them into something to be called."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.bench.linear.problem import PASSES, Contestant
from attensor.bench.peers import FLEX_HAS_NO_BACKWARD, causal_blocks
from attensor.bench.relative_kernel.options import Mode
from attensor.ops import relative_kernel_attention

__all__ = [
    "DENSE_BYTES",
    "FLEX",
    "OURS",
    "SOFTMAX",
    "SOFTMAX_TRAINED",
    "Build",
    "Problem",
    "Sizes",
    "contestants",
    "useful_flops",
]

OURS = "ours"
SOFTMAX = "softmax"
SOFTMAX_TRAINED = "softmax, bias trained"
FLEX = "flex"
# What the n x n matrices of a softmax contestant may take.
DENSE_BYTES = 2 * 2**30
Build = Callable[["Problem"], Contestant]


class Sizes(NamedTuple):
    """One problem: n tokens, M features, head width V."""

    length: int
    num_features: int
    width: int
    is_causal: bool
    num_heads: int = 1

    @property
    def order(self) -> str:
        """Which keys a query sees, in the tables' words."""
        return "causal" if self.is_causal else "bidirectional"


class Problem:
    """Inputs, made when first asked for; the same numbers for every contestant, and for any number of features.

    Args:
        sizes: whose number of features has no effect.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self._generator = torch.Generator().manual_seed(sizes.length)
        self._features: dict[int, tuple[Tensor, Tensor]] = {}

    @cached_property
    def values(self) -> Tensor:
        """[1, n, H, V]."""
        return self._draw(self.sizes.width).requires_grad_()

    @cached_property
    def queries_and_keys(self) -> tuple[Tensor, Tensor]:
        """For softmax attention, [1, n, H, V]."""
        return self._draw(self.sizes.width).requires_grad_(), self._draw(self.sizes.width).requires_grad_()

    @cached_property
    def bias(self) -> Tensor:
        """b of offset key - query at entry key - query + n - 1, [H, 2 n - 1]."""
        bias = torch.randn(self.sizes.num_heads, 2 * self.sizes.length - 1, generator=self._generator)
        return bias.requires_grad_()

    @cached_property
    def mask(self) -> Tensor:
        """The bias of every query and key, -inf after the query if causal, [1, H, n, n]."""
        n = self.sizes.length
        mask = self.bias.detach().unfold(1, n, 1).flip(1)[None]
        if self.sizes.is_causal:
            mask.masked_fill_(torch.ones(n, n, dtype=torch.bool).triu_(1), float("-inf"))
        return mask

    @cached_property
    def upstream(self) -> Tensor:
        """Gradient of the output."""
        return self._draw(self.sizes.width)

    def features(self, count: int) -> tuple[Tensor, Tensor]:
        """Those of queries and keys, not negative, [1, n, H, M].

        Args:
            count: M.
        """
        if count not in self._features:
            q, k = (self._draw(count).abs() for _ in range(2))
            self._features[count] = q.requires_grad_(), k.requires_grad_()
        return self._features[count]

    def _draw(self, width: int) -> Tensor:
        return torch.randn(1, self.sizes.length, self.sizes.num_heads, width, generator=self._generator)


def contestants(sizes: Sizes, mode: Mode) -> dict[str, Build | str]:
    """Name -> what makes the contestant of a problem, or the reason why it takes no part. Softmax attention first."""
    found: dict[str, Build | str] = {SOFTMAX: _dense_limit(sizes, 1) or _softmax}
    if mode == "training":
        # the mask, its gradient, the weights and theirs
        found[SOFTMAX_TRAINED] = _dense_limit(sizes, 4) or partial(_softmax, is_trained=True)
    found[FLEX] = FLEX_HAS_NO_BACKWARD if mode == "training" else _flex
    for name, algorithm in ((OURS, None), ("ours, transforms", "fft"), ("ours, tiles", "tiles")):
        found[name] = partial(_ours, num_features=sizes.num_features, algorithm=algorithm)
    return found


def useful_flops(sizes: Sizes, mode: Mode, contestant: str) -> float:
    """Operations of the two products over all the keys that a query sees: 2 n^2 (M + V) a head, 4 n^2 V for softmax.

    Half of it if causal; three times that with the backward pass. Transforms are credited with the same.

    Args:
        sizes: of the problem.
        mode: `"forward"` or `"training"`.
        contestant: its name.
    """
    inner = sizes.num_features if contestant.startswith(OURS) else sizes.width
    pairs = sizes.num_heads * sizes.length**2 / (2 if sizes.is_causal else 1)
    return PASSES[mode] * 2 * pairs * (inner + sizes.width)


def _ours(problem: Problem, *, num_features: int, algorithm: str | None) -> Contestant:
    def attend() -> Tensor:
        return relative_kernel_attention(
            *leaves[:3], relative_bias=problem.bias, is_causal=problem.sizes.is_causal, algorithm=algorithm
        )

    leaves = (*problem.features(num_features), problem.values, problem.bias)
    return Contestant(attend, leaves, problem.upstream)


def _softmax(problem: Problem, *, is_trained: bool = False) -> Contestant:
    mask = problem.mask.detach().requires_grad_(is_trained)
    leaves = (*problem.queries_and_keys, problem.values)

    def attend() -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in leaves)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    return Contestant(attend, (*leaves, mask) if is_trained else leaves, problem.upstream)


def _flex(problem: Problem) -> Contestant:
    from torch.nn.attention.flex_attention import flex_attention

    # or the sizes before would count against the number of recompilations, and those to come be dynamic
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, fullgraph=True)
    center, bias = problem.sizes.length - 1, problem.bias.detach()
    blocks = causal_blocks(problem.sizes.length) if problem.sizes.is_causal else None

    def add_bias(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias[head, j - i + center]

    # on a CPU it refuses whatever could be differentiated, even where nothing is
    leaves = tuple(x.detach() for x in (*problem.queries_and_keys, problem.values))

    def attend() -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in leaves)
        out: Tensor = compiled(q, k, v, score_mod=add_bias, block_mask=blocks)
        return out.transpose(1, 2)

    return Contestant(attend, leaves, problem.upstream)


def _dense_limit(sizes: Sizes, matrices: int) -> str:
    """Why so many n x n matrices a head are too many; empty when they are not."""
    taken = 4 * matrices * sizes.num_heads * sizes.length**2
    if taken <= DENSE_BYTES:
        return ""
    return f"its n x n matrices take {taken / 2**30:.1f} GiB, limit {DENSE_BYTES / 2**30:g} GiB"
