"""One token at a time, at an early and at a late position: 24 layers of the sizes of GLA 340M.

A recurrent state is as large at position 32768 as at 100, and random numbers of the right size stand in for it; so do
they for the keys and values that softmax attention keeps. What matters is what is read and computed for one token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.bench.contest import OURS, Contestant, Peer, Problem
from attensor.bench.contestants.packages import fla_naive, load
from attensor.nn import GatedLinearAttention, LightningAttention
from attensor.ops import linear_attention_step

__all__ = ["LAYERS", "MINIMAX", "PEERS", "POSITIONS", "TASKS", "DecodeProblem", "minimax_layer"]

POSITIONS = (100, 32768)
NUM_HEADS, KEY_DIM, VALUE_DIM, HIDDEN_SIZE = 4, 128, 256, 1024
LAYERS = 24
# Softmax attention's keys and values are kept for as many layers as fit in this, and the time is scaled up to all.
KEPT_BYTES = 2**30
MINIMAX = "transformers.models.minimax.modeling_minimax"
TASKS = "gates per channel, operator", "gated linear attention, layers", "lightning attention, layers"
GATES, GATED, LIGHTNING = TASKS
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
        return _stack(make, replace(self, position=0))


@lru_cache(maxsize=2)
def _stack(make: Callable[..., Any], problem: DecodeProblem) -> list[Any]:
    layers = range(problem.layers)
    return [make(HIDDEN_SIZE, NUM_HEADS, device=problem.device, dtype=problem.dtype) for _ in layers]


def _ours_operator(problem: DecodeProblem) -> Contestant:
    q, k, v, gates = problem.token
    return _recurrent(problem, lambda state: linear_attention_step(q, k, v, state, log_decay=gates))


def _fla(problem: DecodeProblem, advance: Callable[..., tuple[Tensor, Tensor]]) -> Contestant:
    token = [x[:, None] for x in problem.token]
    return _recurrent(problem, lambda state: advance(*token, initial_state=state, output_final_state=True))


def _fla_naive(problem: DecodeProblem) -> Contestant:
    return _fla(problem, fla_naive("gla").naive_recurrent_gla)


def _fla_kernel(problem: DecodeProblem) -> Contestant:
    return _fla(problem, load("fla.ops.gla", "fla-core", problem.device).fused_recurrent_gla)


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
        return [F.scaled_dot_product_attention(q, keys, values) for keys, values in kept][-1]

    return Contestant(step, state_bytes=layers * size, share=layers / problem.layers)


def _layers(problem: DecodeProblem) -> Contestant:
    """Ours, of either task."""
    layers = problem.stack(GatedLinearAttention if problem.task == GATED else LightningAttention)
    caches = [layer.new_cache(1) for layer in layers]
    for cache, state in zip(caches, problem.states(layers[0].key_dim, layers[0].value_dim)):
        cache.update(problem.position, state=state)
    steps = [partial(layer, cache=cache) for layer, cache in zip(layers, caches)]
    return _stacked(problem, steps, sum(cache.nbytes for cache in caches))


def _minimax(problem: DecodeProblem) -> Contestant:
    module = load(MINIMAX, "transformers")
    ours, caches = problem.stack(LightningAttention), []
    for state in problem.states(ours[0].key_dim, ours[0].value_dim):
        caches.append(module.MiniMaxCache())
        caches[-1].set_linear_cache(0, state.to(problem.dtype))

    def call(layer: Callable[..., Any], cache: Any, hidden: Tensor) -> Tensor:
        out: Tensor = layer(hidden, None, None, past_key_values=cache)[0]
        return out

    steps = [partial(call, minimax_layer(module, layer), cache) for layer, cache in zip(ours, caches)]
    return _stacked(problem, steps, sum(cache.get_linear_cache(0).nbytes for cache in caches))


def _stacked(problem: DecodeProblem, layers: Sequence[Callable[[Tensor], Tensor]], state_bytes: int) -> Contestant:
    hidden = problem.draw(1, 1, HIDDEN_SIZE, seed=0)

    def step() -> Tensor:
        mixed = hidden
        for layer in layers:
            mixed = mixed + layer(mixed)
        return mixed

    return Contestant(step, state_bytes=state_bytes)


def minimax_layer(module: ModuleType, ours: LightningAttention) -> nn.Module:
    """transformers' MiniMax lightning layer with the weights of ours.

    Args:
        module: the one named `MINIMAX`.
        ours: the only layer of its stack.
    """
    config = module.MiniMaxConfig(
        hidden_size=ours.hidden_size,
        num_attention_heads=ours.num_heads,
        num_key_value_heads=ours.num_heads,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    weight = ours.q_proj.weight
    layer: nn.Module = module.MiniMaxLightningAttention(config, 0).to(weight.device, weight.dtype)
    heads = (ours.num_heads, -1, ours.hidden_size)
    by_head = [project.weight.detach().view(heads) for project in (ours.q_proj, ours.k_proj, ours.v_proj)]
    weights = {
        "qkv_proj.weight": torch.cat(by_head, 1).flatten(0, 1),  # q, k, v of head 0, then of head 1
        "out_proj.weight": ours.o_proj.weight.detach(),
        "output_gate.weight": ours.g_proj.weight.detach(),
    }
    layer.load_state_dict(weights, strict=False)  # its norm has weight 1, as ours
    return layer


PEERS = (
    Peer(OURS, _ours_operator, kinds=(GATES,)),
    Peer("fla-recurrent-naive", _fla_naive, kinds=(GATES,), packages=("fla-core",)),
    Peer("fla-recurrent", _fla_kernel, kinds=(GATES,), packages=("fla-core", "triton")),
    Peer("sdpa", _softmax, kinds=(GATES,), packages=("torch",), computes="softmax attention, same sizes"),
    Peer(OURS, _layers, kinds=(GATED, LIGHTNING), packages=("attensor",)),
    Peer("minimax", _minimax, kinds=(LIGHTNING,), packages=("transformers",)),
)
