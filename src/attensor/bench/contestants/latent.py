"""`attensor bench latent`: a decoding step of latent attention, and the bytes that each way of it keeps.

Weights and what is kept are random numbers, the same for all. After a call the new token is forgotten again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from attensor.bench.contest import OURS, Cell, Contestant, Peer, Problem, Row
from attensor.bench.contestants.packages import load
from attensor.bench.hold import Bench
from attensor.bench.layout import Table
from attensor.models.language.deepseek import PRESETS
from attensor.nn import LatentAttention, token_positions
from attensor.ops import softmax_attention

if TYPE_CHECKING:
    from attensor.commands.bench_latent import BenchLatent
    from attensor.nn import Yarn

__all__ = ["PEERS", "LatentProblem", "bench", "bytes_table"]

HOW_TO_READ = (
    "'ours' reads the latents as they are kept, 'ours, naive' makes keys and values of all heads of them in every "
    "step, 'ours, keys and values kept' has made them when each token came. transformers makes them in every step, and "
    "its cache joins the new token to a copy of all. Useful operations: the absorbed form's and all projections'."
)


@dataclass(frozen=True)
class LatentProblem(Problem):
    """One token after `position` others, through a layer of the sizes of `model`."""

    position: int
    model: str

    kind = property(lambda self: self.model)
    title = property(lambda self: f"B1, one layer of {self.model}, decoding")
    label = property(lambda self: f"position {self.position}")
    size = property(lambda self: (self.position,))

    @property
    def layer(self) -> LatentAttention:
        """Of random weights, the same for every contestant."""
        return _layer(self.model, self.device, self.dtype)

    @property
    def hidden(self) -> Tensor:
        """The new token, [1, 1, C]."""
        return self.draw(1, 1, self.layer.hidden_size, seed=0)

    @property
    def kept(self) -> Tensor:
        """Latents after their norm and rotary keys of the tokens before, [1, T, 1, R + D]."""
        return self.draw(1, self.position, 1, self.layer.kv_rank + self.layer.rotary_dim, seed=1)


@lru_cache(maxsize=1)
def _layer(model: str, device: str, dtype: torch.dtype) -> LatentAttention:
    sizes = PRESETS[model]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = LatentAttention(sizes["hidden_size"], sizes["num_attention_heads"], **sizes["mixer_options"]["mla"])
    return layer.to(device, dtype).eval()


def _ours(problem: LatentProblem, form: Literal["naive", "absorbed"] | None = None) -> Contestant:
    layer = copy.copy(problem.layer)
    layer.form = form
    cache = layer.new_cache(1, problem.position + 1, dtype=problem.dtype)
    cache.append(latent=problem.kept)
    size, hidden = cache.nbytes, problem.hidden

    def step() -> Tensor:
        out: Tensor = layer(hidden, cache=cache)
        cache.crop(problem.position)
        return out

    return Contestant(step, state_bytes=size)


def _ours_expanded(problem: LatentProblem) -> Contestant:
    """Keys and values of every head are kept: 2 R numbers less to read, H (N + D + V) - R - D more."""
    layer, now = problem.layer, token_positions(1, offset=problem.position, device=torch.device(problem.device))
    made = [_expanded(layer, problem.kept)]
    keys, values = (torch.cat([x, x.new_zeros(1, 1, *x.shape[2:])], 1) for x in made.pop())

    def step() -> Tensor:
        heads = layer.project(problem.hidden, now)
        latent = layer.kv_a_layernorm(heads.k[..., : layer.kv_rank])
        new = _expanded(layer, torch.cat([latent, heads.k[..., layer.kv_rank :]], -1))
        keys[:, -1:], values[:, -1:] = new
        return layer.merge(softmax_attention(heads.q, keys, values, scale=layer.scale, is_causal=True), heads)

    return Contestant(step, state_bytes=(keys.nbytes + values.nbytes) // (problem.position + 1) * problem.position)


@torch.no_grad()
def _expanded(layer: LatentAttention, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [1, T, H, N + D] and values [1, T, H, V]."""
    latent, rotary = torch.split(kept, [layer.kv_rank, layer.rotary_dim], -1)
    by_head = torch.unflatten(layer.kv_b_proj(latent)[:, :, 0], -1, (layer.num_heads, -1))
    k, v = torch.split(by_head, [layer.nope_dim, layer.value_dim], -1)
    return torch.cat([k, rotary.expand(-1, -1, layer.num_heads, -1)], -1), v.contiguous()


def _transformers(problem: LatentProblem) -> Contestant:
    module = load("transformers.models.deepseek_v2.modeling_deepseek_v2", "transformers")
    ours, cache_type = problem.layer, load("transformers.cache_utils", "transformers").DynamicCache
    config = _config(module, ours, problem.position)
    layer = module.DeepseekV2Attention(config, 0).to(problem.device, problem.dtype).eval()
    layer.load_state_dict(ours.state_dict())
    now = torch.tensor([[problem.position]], device=problem.device)
    angles = module.DeepseekV2RotaryEmbedding(config).to(problem.device)(problem.hidden, now)
    cache = cache_type()
    latent, rotary = torch.split(problem.kept.transpose(1, 2), [ours.kv_rank, ours.rotary_dim], -1)
    cache.update(latent.contiguous(), rotary.contiguous(), 0)
    hidden, held = problem.hidden, cache.layers[0]

    def step() -> Tensor:
        before = held.keys, held.values
        out: Tensor = layer(
            hidden_states=hidden, attention_mask=None, past_key_values=cache, position_embeddings=angles
        )[0]
        held.keys, held.values = before
        return out

    return Contestant(step, state_bytes=held.keys.nbytes + held.values.nbytes)


def _config(module: Any, ours: LatentAttention, position: int) -> Any:
    yarn = cast("Yarn", ours.rotary)  # as in all presets
    rope = {
        "rope_type": "yarn", "rope_theta": yarn.base, "factor": yarn.factor, "mscale": yarn.mscale,
        "original_max_position_embeddings": yarn.original_length, "mscale_all_dim": yarn.mscale_all_dim,
        "beta_fast": yarn.beta_fast, "beta_slow": yarn.beta_slow,
    }  # fmt: skip
    config = module.DeepseekV2Config(
        hidden_size=ours.hidden_size,
        num_attention_heads=ours.num_heads,
        num_key_value_heads=ours.num_heads,
        kv_lora_rank=ours.kv_rank,
        q_lora_rank=ours.q_rank,
        qk_nope_head_dim=ours.nope_dim,
        qk_rope_head_dim=ours.rotary_dim,
        v_head_dim=ours.value_dim,
        rope_parameters=rope,
        max_position_embeddings=max(position + 1, int(yarn.factor * yarn.original_length)),
    )
    config._attn_implementation = "sdpa"
    return config


def _flops(problem: LatentProblem) -> float:
    layer = problem.layer
    read = layer.num_heads * (2 * layer.kv_rank + layer.rotary_dim) * (problem.position + 1)
    return 2.0 * (read + sum(weight.numel() for weight in layer.parameters() if weight.ndim == 2))


PEERS = (
    Peer(OURS, _ours, _flops, packages=("attensor",)),
    Peer("ours, naive", partial(_ours, form="naive"), _flops, packages=("attensor",), allowance=20),
    Peer("ours, keys and values kept", _ours_expanded, _flops, packages=("attensor",)),
    Peer("transformers", _transformers, _flops, packages=("transformers",), allowance=20),
)


def bytes_table(rows: Sequence[Row]) -> Iterable[Table]:
    """What is kept of a token in a layer, on each device of so many."""
    if not rows:
        return
    problem = rows[0].problem
    layer, number = problem.layer, torch.tensor([], dtype=problem.dtype).element_size()
    whole, rotary = layer.kv_rank, layer.rotary_dim
    ways = {
        "MLA, any devices": whole + rotary,
        "TPLA, 2 devices": whole // 2 + rotary,
        "GLA, 2 devices": whole // 2 + rotary,
        "GQA (8 of 128)": 2 * 8 * 128,
        "GQA, 2 devices": 8 * 128,
        "all heads' k and v": layer.num_heads * (layer.nope_dim + rotary + layer.value_dim),
    }
    table = Table(
        f"kept of a token by a layer of {problem.model}, on each device",
        ("way", "numbers", "bytes", "times MLA"),
        note="These follow from the sizes; GLA with two latents of half the width. Nothing is measured here.",
    )
    for way, numbers in ways.items():
        table.rows.append((way, str(numbers), str(numbers * number), f"{numbers / (whole + rotary):.2f}"))
    yield table


def bench(options: BenchLatent) -> Bench:
    """The contest of the options."""
    usual = LatentProblem(70, options.model, device=options.device)
    cells = [Cell("decode", [replace(usual, position=position)]) for position in sorted(set(options.positions))]
    suffix = "" if options.model == "deepseek-v2-lite-attention" else f"-{options.model.removesuffix('-attention')}"
    suffix += "" if options.threads == 1 else f"-t{options.threads}"
    return Bench(PEERS, [usual], cells, HOW_TO_READ, suffix, bytes_table)
