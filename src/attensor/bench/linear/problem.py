"""What the contestants compute: inputs of one variant at one size, the expected result, and the useful work in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn import LightningAttention
from attensor.nn.lightning import decay_slopes

__all__ = ["CHUNK_SIZE", "PASSES", "Contestant", "Problem", "useful_flops"]

# What the count of useful operations assumes for every chunked algorithm, whatever chunk it takes itself.
CHUNK_SIZE = 64
# A backward pass repeats each product of the forward pass once for either factor.
PASSES = {"forward": 1, "training": 3}
# Positive features keep this distance from 0, as performer-pytorch's do.
FEATURE_MINIMUM = 1e-3


@dataclass(frozen=True)
class Problem:
    """Inputs of one variant, made when first asked for; the same numbers for every contestant.

    Attributes:
        variant: a key of `options.VARIANTS`.
        batch: sequences B.
        length: tokens T of each.
        num_heads: H.
        head_dim: K and V.
        device: where; bfloat16 on a GPU, float32 on a CPU.
        drawn: random numbers made so far, shared with the problems of other variants at these sizes.
    """

    variant: str
    batch: int
    length: int
    num_heads: int
    head_dim: int
    device: str = "cpu"
    drawn: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def variation(self, variant: str) -> Problem:
        """The same numbers for another variant."""
        return replace(self, variant=variant)

    @property
    def dtype(self) -> torch.dtype:
        """Of q, k, v and the layers; decays are float32."""
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    @property
    def hidden_size(self) -> int:
        """Channels of the layer whose heads these are."""
        return self.num_heads * self.head_dim

    @cached_property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, H, D] each; positive queries and keys where there is a denominator."""
        q, k, v = (self._draw(i, self.num_heads, self.head_dim) for i in range(3))
        if self.variant == "denominator":
            q, k = (F.relu(x) + FEATURE_MINIMUM for x in (q, k))
        return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()

    @cached_property
    def log_decay(self) -> Tensor | None:
        """[H] of lightning attention, [B, T, H], [B, T, H, K], or None."""
        if self.variant == "constant":
            slopes = decay_slopes(self.num_heads, device=torch.device(self.device))
            return -slopes.float()
        if self.variant == "scalar":
            return self._gates(self.num_heads)
        return self._gates(self.num_heads, self.head_dim) if self.variant == "channel" else None

    @cached_property
    def hidden_states(self) -> Tensor:
        """[B, T, C], for layers."""
        return self._draw(0, self.hidden_size).requires_grad_()

    @cached_property
    def layer(self) -> LightningAttention:
        """Ours, whose weights a peer's layer takes over."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return LightningAttention(self.hidden_size, self.num_heads, device=self.device, dtype=self.dtype)

    @cached_property
    def upstream(self) -> Tensor:
        """Gradient of the output."""
        if self.variant == "layer":
            return self._draw(3, self.hidden_size)
        return self._draw(3, self.num_heads, self.head_dim)

    def leaves(self) -> tuple[Tensor, ...]:
        """What the operators differentiate for: q, k, v and the gates that depend on the token."""
        gates = (self.log_decay,) if self.log_decay is not None and self.log_decay.requires_grad else ()
        return *self.qkv, *gates

    def _draw(self, seed: int, *trailing: int) -> Tensor:
        if (seed, *trailing) not in self.drawn:
            generator = torch.Generator().manual_seed(1000 * self.length + seed)
            numbers = torch.randn(self.batch, self.length, *trailing, generator=generator)
            self.drawn[seed, *trailing] = numbers.to(self.device, self.dtype)
        return self.drawn[seed, *trailing]

    def _gates(self, *trailing: int) -> Tensor:
        return (F.logsigmoid(self._draw(4, *trailing).float()) / 16).requires_grad_()


@dataclass(frozen=True)
class Contestant:
    """One implementation applied to one problem.

    Attributes:
        forward: the output, [B, T, H, V] or for layers [B, T, C].
        leaves: what `forward` can be differentiated for.
        upstream: gradient of the output.
    """

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    upstream: Tensor

    @classmethod
    def of(cls, problem: Problem, function: Callable[..., Tensor], *leaves: Tensor) -> Contestant:
        """`function` of the problem's q, k, v and gates, or of `leaves` where it wants its inputs otherwise."""
        inputs = leaves or problem.leaves()
        return cls(lambda: function(*inputs), inputs, problem.upstream)

    @classmethod
    def of_layer(cls, problem: Problem, layer: nn.Module, call: Callable[[Tensor], Tensor]) -> Contestant:
        """A layer applied to the problem's hidden states, differentiated for them and for its weights."""
        leaves = (problem.hidden_states, *layer.parameters())
        return cls(lambda: call(problem.hidden_states), leaves, problem.upstream)

    def call(self, mode: str) -> Callable[[], object]:
        """What is timed: `"forward"` without a graph, or `"training"` with the backward pass."""
        if mode == "training":
            return lambda: torch.autograd.grad(self.forward(), self.leaves, self.upstream)
        return torch.no_grad()(self.forward)


def useful_flops(problem: Problem, mode: str, work: str) -> float:
    """Operations in matrix products that the algorithm needs; the part above the causal diagonal does not count.

    A token and head: 4 K V + 64 (K + V) for `"chunked"`, 4 K V for `"recurrent"`, T (K + V) for `"quadratic"`; a layer
    adds 10 C^2 a token for its five projections. Three times that with the backward pass.

    Args:
        problem: the sizes.
        mode: `"forward"` or `"training"`.
        work: which of the three.
    """
    width, state = 2 * problem.head_dim, problem.head_dim**2
    per_head = {
        "chunked": 4 * state + CHUNK_SIZE * width,
        "recurrent": 4 * state,
        "quadratic": problem.length * width,
    }[work]
    projections = 10 * problem.hidden_size**2 if problem.variant == "layer" else 0
    per_token = problem.num_heads * per_head + projections
    return float(PASSES[mode] * problem.batch * problem.length * per_token)
