"""One token at a time, at an early and at a late position: 24 layers of the sizes of GLA 340M.

A recurrent state is as large at position 32768 as at 100, and random numbers of the right size stand in for it; so do
they for the keys and values that softmax attention keeps. What matters is what is read and computed for one token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.bench.linear.peers import MINIMAX, minimax_layer
from attensor.bench.linear.registry import OURS, fla_naive, load, load_for_gpu
from attensor.nn import GatedLinearAttention, LightningAttention
from attensor.ops import linear_attention_step

__all__ = ["DECODERS", "POSITIONS", "Decoder", "Workload"]

POSITIONS = (100, 32768)
NUM_HEADS, KEY_DIM, VALUE_DIM, HIDDEN_SIZE = 4, 128, 256, 1024
LAYERS = 24
# Softmax attention's keys and values are kept for as many layers as fit in this, and the time is scaled up to all.
KEPT_BYTES = 2**30


@dataclass(frozen=True)
class Decoder:
    """One contestant at one position.

    Attributes:
        step: a token through `layers` layers, each added to its input; the last sum. Operators: the last one's output.
        layers: so many.
        state_bytes: what all these layers keep.
    """

    step: Callable[[], Tensor]
    layers: int
    state_bytes: int


@dataclass(frozen=True)
class Workload:
    """The tensors and layers of one measurement, made when first asked for."""

    device: str
    layers: int = LAYERS

    @property
    def dtype(self) -> torch.dtype:
        """Of everything but states and gates, which are float32."""
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    def draw(self, *shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers, the same for the same shape and seed."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.device, dtype or self.dtype)

    @cached_property
    def token(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k [1, H, K], v [1, H, V] and log decays [1, H, K]."""
        q, k = (self.draw(1, NUM_HEADS, KEY_DIM, seed=seed) for seed in (1, 2))
        gates = F.logsigmoid(self.draw(1, NUM_HEADS, KEY_DIM, seed=3, dtype=torch.float32)) / 16
        return q, k, self.draw(1, NUM_HEADS, VALUE_DIM, seed=4), gates

    @cached_property
    def gated(self) -> list[GatedLinearAttention]:
        """Layers of GLA 340M."""
        return [
            GatedLinearAttention(HIDDEN_SIZE, NUM_HEADS, device=self.device, dtype=self.dtype)
            for _ in range(self.layers)
        ]

    @cached_property
    def lightning(self) -> list[LightningAttention]:
        """Lightning layers of the same width and heads."""
        return [
            LightningAttention(HIDDEN_SIZE, NUM_HEADS, device=self.device, dtype=self.dtype) for _ in range(self.layers)
        ]

    def states(self, key_dim: int, value_dim: int) -> list[Tensor]:
        """[1, H, K, V] for every layer."""
        shape = (1, NUM_HEADS, key_dim, value_dim)
        return [self.draw(*shape, seed=layer, dtype=torch.float32) for layer in range(self.layers)]


def _ours_operator(work: Workload, position: int) -> Decoder | str:
    q, k, v, gates = work.token
    return _recurrent(work, lambda state: linear_attention_step(q, k, v, state, log_decay=gates))


def _fla_naive(work: Workload, position: int) -> Decoder | str:
    module = fla_naive("gla")
    if isinstance(module, str):
        return module
    token = [x[:, None] for x in work.token]
    return _recurrent(work, lambda state: module.naive_recurrent_gla(*token, state, output_final_state=True))


def _fla_kernel(work: Workload, position: int) -> Decoder | str:
    module = load_for_gpu(work.device, "fla.ops.gla", "fla-core")
    if isinstance(module, str):
        return module
    token = [x[:, None] for x in work.token]
    kernel = partial(module.fused_recurrent_gla, *token, output_final_state=True)
    return _recurrent(work, lambda state: kernel(initial_state=state))


def _recurrent(work: Workload, advance: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Decoder:
    states = work.states(KEY_DIM, VALUE_DIM)

    def step() -> Tensor:
        for layer, state in enumerate(states):
            out, states[layer] = advance(state)
        return out

    return Decoder(step, work.layers, sum(state.nbytes for state in states))


def _softmax(work: Workload, position: int) -> Decoder | str:
    q, k, v, _ = (x[:, :, None] for x in work.token)  # [1, H, 1, D]
    size = position * NUM_HEADS * (KEY_DIM + VALUE_DIM) * k.element_size()
    layers = max(1, min(work.layers, KEPT_BYTES // size))
    # filled, not drawn: what a key is worth does not change what reading it costs
    kept = [tuple(x.expand(-1, -1, position, -1).contiguous() for x in (k, v)) for _ in range(layers)]

    def step() -> Tensor:
        for keys, values in kept:
            out = F.scaled_dot_product_attention(q, keys, values)
        return out

    return Decoder(step, layers, layers * size)


def _gated_layers(work: Workload, position: int) -> Decoder | str:
    return _ours_layers(work, work.gated, position)


def _lightning_layers(work: Workload, position: int) -> Decoder | str:
    return _ours_layers(work, work.lightning, position)


def _ours_layers(
    work: Workload, layers: list[GatedLinearAttention] | list[LightningAttention], position: int
) -> Decoder:
    hidden = work.draw(1, 1, HIDDEN_SIZE)
    caches = [layer.new_cache(1) for layer in layers]
    for cache, state in zip(caches, work.states(layers[0].key_dim, layers[0].value_dim)):
        cache.update(position, state=state)

    def step() -> Tensor:
        mixed = hidden
        for layer, cache in zip(layers, caches):
            mixed = mixed + layer(mixed, cache=cache)
        return mixed

    return Decoder(step, len(layers), sum(cache.nbytes for cache in caches))


def _minimax_layers(work: Workload, position: int) -> Decoder | str:
    module = load(MINIMAX, "transformers")
    if isinstance(module, str):
        return module
    hidden = work.draw(1, 1, HIDDEN_SIZE)
    layers, caches = [], []
    states = work.states(work.lightning[0].key_dim, work.lightning[0].value_dim)
    for ours, state in zip(work.lightning, states):
        layers.append(minimax_layer(module, ours))
        caches.append(module.MiniMaxCache())
        caches[-1].set_linear_cache(0, state.to(work.dtype))

    def step() -> Tensor:
        mixed = hidden
        for layer, cache in zip(layers, caches):
            mixed = mixed + layer(mixed, None, None, past_key_values=cache)[0]
        return mixed

    return Decoder(step, len(layers), sum(state.to(work.dtype).nbytes for state in states))


GATES, GATED, LIGHTNING = "gates per channel, operator", "gated linear attention, layers", "lightning attention, layers"
DECODERS: dict[tuple[str, str], Callable[[Workload, int], Decoder | str]] = {
    (GATES, OURS): _ours_operator,
    (GATES, "fla-recurrent-naive"): _fla_naive,
    (GATES, "fla-recurrent"): _fla_kernel,
    (GATES, "sdpa"): _softmax,
    (GATED, OURS): _gated_layers,
    (LIGHTNING, OURS): _lightning_layers,
    (LIGHTNING, "minimax"): _minimax_layers,
}
