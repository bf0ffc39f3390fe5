"""One token at a time, at an early and at a late position: 24 layers of the sizes of GLA 340M.

A recurrent state is as large at position 32768 as at 100, and random numbers of the right size stand in for it; so do
they for the keys and values that softmax attention keeps. What matters is what is read and computed for one token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.bench.contest import OURS, Contestant, Peer, Problem, reference
from attensor.bench.contestants.linear_peers import MINIMAX, minimax_layer
from attensor.bench.contestants.packages import fla_naive, load, load_for_gpu
from attensor.nn import GatedLinearAttention, LightningAttention
from attensor.ops import linear_attention_step

__all__ = ["GATED", "GATES", "LAYERS", "LIGHTNING", "PEERS", "POSITIONS", "DecodeProblem", "problems"]

POSITIONS = (100, 32768)
NUM_HEADS, KEY_DIM, VALUE_DIM, HIDDEN_SIZE = 4, 128, 256, 1024
LAYERS = 24
# Softmax attention's keys and values are kept for as many layers as fit in this, and the time is scaled up to all.
KEPT_BYTES = 2**30
GATES, GATED, LIGHTNING = "gates per channel, operator", "gated linear attention, layers", "lightning attention, layers"
HOW_TO_READ = (
    "Decoding: operators have K 128 and V 256, lightning layers K 256 and V 256. Recurrent states hold random numbers; "
    "softmax attention's keys and values are kept for as many layers as fit in 1 GiB, its time is scaled to all layers."
)


@dataclass(frozen=True)
class DecodeProblem(Problem):
    """A token through all layers, each added to its input (operators: each with the same input).

    Attributes:
        task: what a layer is.
        position: tokens before this one.
        layers: so many.
    """

    task: str
    position: int
    layers: int = LAYERS

    kind = property(lambda self: self.task)
    label = property(lambda self: f"position {self.position}")
    size = property(lambda self: (self.position,))

    title = property(
        lambda self: f"B1, {self.layers} layers of width {HIDDEN_SIZE} with {NUM_HEADS} heads: {self.task}"
    )

    @property
    def token(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k [1, H, K], v [1, H, V] and log decays [1, H, K]."""
        q, k = (self.draw(1, NUM_HEADS, KEY_DIM, seed=seed) for seed in (1, 2))
        gates = F.logsigmoid(self.draw(1, NUM_HEADS, KEY_DIM, seed=3, dtype=torch.float32)) / 16
        return q, k, self.draw(1, NUM_HEADS, VALUE_DIM, seed=4), gates

    def states(self, key_dim: int, value_dim: int) -> list[Tensor]:
        """[1, H, K, V] for every layer; a copy, as some advance them in place."""
        shape = (1, NUM_HEADS, key_dim, value_dim)
        return [self.draw(*shape, seed=layer, dtype=torch.float32).clone() for layer in range(self.layers)]

    def stack(self, make: Callable[..., Any]) -> list[Any]:
        """That many layers of ours, the same ones for every contestant."""
        return _stack(make, HIDDEN_SIZE, NUM_HEADS, self.layers, self.device, self.dtype)


@lru_cache(maxsize=2)
def _stack(make: Callable[..., Any], width: int, heads: int, layers: int, device: str, dtype: torch.dtype) -> list[Any]:
    return [make(width, heads, device=device, dtype=dtype) for _ in range(layers)]


def problems(device: str, layers: int) -> list[DecodeProblem]:
    """Each task at each position."""
    tasks = (GATES, GATED, LIGHTNING)
    return [DecodeProblem(task, position, layers, device=device) for task in tasks for position in POSITIONS]


def _ours_operator(problem: DecodeProblem) -> Contestant:
    q, k, v, gates = problem.token
    return _recurrent(problem, lambda state: linear_attention_step(q, k, v, state, log_decay=gates))


def _fla_naive(problem: DecodeProblem) -> Contestant:
    module = fla_naive("gla")
    token = [x[:, None] for x in problem.token]
    return _recurrent(problem, lambda state: module.naive_recurrent_gla(*token, state, output_final_state=True))


def _fla_kernel(problem: DecodeProblem) -> Contestant:
    module = load_for_gpu(problem.device, "fla.ops.gla", "fla-core")
    token = [x[:, None] for x in problem.token]
    kernel = partial(module.fused_recurrent_gla, *token, output_final_state=True)
    return _recurrent(problem, lambda state: kernel(initial_state=state))


def _recurrent(problem: DecodeProblem, advance: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Contestant:
    states = problem.states(KEY_DIM, VALUE_DIM)

    def step() -> Tensor:
        for layer, state in enumerate(states):
            out, states[layer] = advance(state)
        return out

    return Contestant(step, state_bytes=sum(state.nbytes for state in states))


def _softmax(problem: DecodeProblem) -> Contestant:
    q, k, v, _ = (x[:, :, None] for x in problem.token)  # [1, H, 1, D]
    size = problem.position * NUM_HEADS * (KEY_DIM + VALUE_DIM) * k.element_size()
    layers = max(1, min(problem.layers, KEPT_BYTES // size))
    # filled, not drawn: what a key is worth does not change what reading it costs
    kept = [tuple(x.expand(-1, -1, problem.position, -1).contiguous() for x in (k, v)) for _ in range(layers)]

    def step() -> Tensor:
        for keys, values in kept:
            out = F.scaled_dot_product_attention(q, keys, values)
        return out

    return Contestant(step, state_bytes=layers * size, share=layers / problem.layers)


def _layers(problem: DecodeProblem) -> Contestant:
    """Ours, of either task."""
    layers = problem.stack(GatedLinearAttention if problem.task == GATED else LightningAttention)
    caches = [layer.new_cache(1) for layer in layers]
    for cache, state in zip(caches, problem.states(layers[0].key_dim, layers[0].value_dim)):
        cache.update(problem.position, state=state)
    return _stacked(
        problem,
        [partial(layer, cache=cache) for layer, cache in zip(layers, caches)],
        sum(cache.nbytes for cache in caches),
    )


def _minimax(problem: DecodeProblem) -> Contestant:
    module = load(MINIMAX, "transformers")
    ours, caches = problem.stack(LightningAttention), []
    for state in problem.states(ours[0].key_dim, ours[0].value_dim):
        caches.append(module.MiniMaxCache())
        caches[-1].set_linear_cache(0, state.to(problem.dtype))

    def call(layer: Callable[..., Any], cache: Any, hidden: Tensor) -> Tensor:
        out: Tensor = layer(hidden, None, None, past_key_values=cache)[0]
        return out

    layers = [partial(call, minimax_layer(module, layer), cache) for layer, cache in zip(ours, caches)]
    return _stacked(problem, layers, sum(cache.get_linear_cache(0).nbytes for cache in caches))


def _stacked(problem: DecodeProblem, layers: Sequence[Callable[[Tensor], Tensor]], state_bytes: int) -> Contestant:
    hidden = problem.draw(1, 1, HIDDEN_SIZE, seed=0)

    def step() -> Tensor:
        mixed = hidden
        for layer in layers:
            mixed = mixed + layer(mixed)
        return mixed

    return Contestant(step, state_bytes=state_bytes)


def _no_flops(problem: DecodeProblem) -> float:
    return 0.0


PEERS = (
    Peer(OURS, _ours_operator, _no_flops, (GATES,), reference=reference(_ours_operator)),
    Peer("fla-recurrent-naive", _fla_naive, _no_flops, (GATES,), packages=("fla-core",)),
    Peer("fla-recurrent", _fla_kernel, _no_flops, (GATES,), packages=("fla-core", "triton")),
    Peer("sdpa", _softmax, _no_flops, (GATES,), packages=("torch",), computes="softmax attention, same sizes"),
    Peer(OURS, _layers, _no_flops, (GATED, LIGHTNING), packages=("attensor",), reference=reference(_layers)),
    Peer("minimax", _minimax, _no_flops, (LIGHTNING,), packages=("transformers",)),
)
