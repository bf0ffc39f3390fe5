"""Linear attention at one size, in one variant: inputs, and the work in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.bench.contest import Contestant, Problem
from attensor.nn import LightningAttention
from attensor.nn.lightning import decay_slopes

__all__ = ["OPERATOR_VARIANTS", "VARIANTS", "LinearProblem", "chunked", "quadratic", "recurrent"]

VARIANTS = {
    "none": "no decay",
    "constant": "constant decay, one a head",
    "scalar": "gates, one a head and token",
    "channel": "gates, one a head, token and key channel",
    "denominator": "positive features and a denominator, no decay",
    "layer": "the whole lightning layer with its projections",
}
OPERATOR_VARIANTS = ("none", "constant", "scalar", "channel")
# What the count of useful operations assumes for every chunked algorithm, whatever chunk it takes itself.
CHUNK_SIZE = 64
# Positive features keep this distance from 0, as performer-pytorch's do.
FEATURE_MINIMUM = 1e-3


@dataclass(frozen=True)
class LinearProblem(Problem):
    """B sequences of T tokens, H heads with K = V = D; the same numbers for every contestant and variant."""

    variant: str
    batch: int
    length: int
    num_heads: int
    head_dim: int

    kind = property(lambda self: self.variant)
    series = property(lambda self: self.variant)
    tokens = property(lambda self: self.batch * self.length)
    size = property(lambda self: (self.tokens, self.length))
    label = property(lambda self: f"{self.batch} x {self.length}")
    hidden_size = property(lambda self: self.num_heads * self.head_dim)
    input_bytes = property(lambda self: 3 * self.tokens * self.hidden_size * self.dtype.itemsize)

    title = property(
        lambda self: (
            f"{VARIANTS[self.variant]}: {self.tokens} tokens a call, H{self.num_heads} K{self.head_dim} "
            f"V{self.head_dim}, {str(self.dtype).partition('.')[2]}"
        )
    )

    def plain(self) -> LinearProblem:
        """Without a decay, of which softmax attention knows nothing."""
        return replace(self, variant="none")

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """q, k, v and out [B, T, H, D]; of a layer hidden states and out [B, T, C]."""
        if self.variant == "layer":
            return ((self.batch, self.length, self.hidden_size),) * 2
        return ((self.batch, self.length, self.num_heads, self.head_dim),) * 4

    @cached_property
    def log_decay(self) -> Tensor | None:
        """[H] of lightning attention, [B, T, H], [B, T, H, K], or None."""
        if self.variant == "constant":
            return -decay_slopes(self.num_heads, device=torch.device(self.device)).float()
        trailing = {"scalar": (self.num_heads,), "channel": (self.num_heads, self.head_dim)}.get(self.variant)
        if trailing is None:
            return None
        gates = self.draw(self.batch, self.length, *trailing, seed=4).float()
        return (F.logsigmoid(gates) / 16).requires_grad_()

    @cached_property
    def layer(self) -> LightningAttention:
        """Ours, whose weights a peer's layer takes over."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return LightningAttention(self.hidden_size, self.num_heads, device=self.device, dtype=self.dtype)

    def contestant(self, function: Callable[..., Tensor]) -> Contestant:
        """`function` of q, k, v and the gates that depend on the token; a denominator gets positive q and k."""
        usual = super().contestant(function)
        leaves = list(usual.leaves)
        if self.variant == "denominator":
            leaves[:2] = [(F.relu(x.detach()) + FEATURE_MINIMUM).requires_grad_() for x in leaves[:2]]
        if self.log_decay is not None and self.log_decay.requires_grad:
            leaves.append(self.log_decay)
        return replace(usual, leaves=leaves)

    def layer_contestant(self, layer: nn.Module, call: Callable[[Tensor], Tensor]) -> Contestant:
        """A layer applied to hidden states, differentiated for them and for its weights."""
        usual = super().contestant(lambda x, *weights: call(x))
        return replace(usual, leaves=(*usual.leaves, *layer.parameters()))


def chunked(problem: LinearProblem) -> float:
    """4 K V + 64 (K + V) a token and head, and for a layer 10 C^2 a token for its five projections."""
    projections = 10 * problem.hidden_size**2 if problem.variant == "layer" else 0
    return recurrent(problem) + float(problem.tokens * (2 * CHUNK_SIZE * problem.hidden_size + projections))


def recurrent(problem: LinearProblem) -> float:
    """4 K V a token and head."""
    return float(4 * problem.tokens * problem.hidden_size * problem.head_dim)


def quadratic(problem: LinearProblem) -> float:
    """T (K + V) a token and head: what is above the causal diagonal does not count."""
    return float(2 * problem.tokens * problem.hidden_size * problem.length)
