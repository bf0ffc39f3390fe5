"""transformers' own attention layers with the weights of ours, as far as it has them, and their caches."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attensor.bench.contestants.linear_decode import MINIMAX, minimax_layer
from attensor.bench.contestants.packages import load
from attensor.models.language._streaming import bytes_of

__all__ = ["PEERS_OF", "Theirs"]


@dataclass
class Theirs:
    """A layer, and the cache that it was handed.

    Attributes:
        layer: with our weights.
        cache: of a model of this layer alone.
        rotary: hidden states and positions -> what the layer takes as position_embeddings; None without.
        named: what the layer calls its cache.
    """

    layer: nn.Module
    cache: Any
    rotary: nn.Module | None = None
    named: str = "past_key_values"

    def angles(self, hidden_states: Tensor, start: int) -> Any:
        """Of the positions from `start` on."""
        if self.rotary is None:
            return None
        positions = torch.arange(start, start + hidden_states.shape[1], device=hidden_states.device)
        return self.rotary(hidden_states, positions[None].expand(hidden_states.shape[0], -1))

    def call(self, hidden_states: Tensor, angles: Any) -> Tensor:
        """[B, T, C] to the same, the tokens added to the cache."""
        options = {} if self.rotary is None else {"position_embeddings": angles}
        out = self.layer(hidden_states, attention_mask=None, **options, **{self.named: self.cache})
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    def read(self, hidden_states: Tensor, start: int) -> None:
        """The tokens from `start` on."""
        self.call(hidden_states, self.angles(hidden_states, start))

    def stretch(self, context: int) -> None:
        """As if so many tokens had come: those that are held, again and again."""
        for layer in self.cache.layers:
            if getattr(layer, "keys", None) is None:
                continue
            window = getattr(layer, "sliding_window", None)
            kept = context if window is None else min(context, window - 1)
            places = torch.arange(context - kept, context, device=layer.keys.device)
            for name in ("keys", "values"):
                held = getattr(layer, name)
                setattr(layer, name, held.index_select(2, places % held.shape[2]))
            if window is not None:
                layer.cumulative_length = context

    @property
    def nbytes(self) -> int:
        """Bytes of what the cache holds."""
        return bytes_of(self.cache)


def _rotary(name: str, layer: Any, device: str, **options: Any) -> Theirs:
    """A model of the Llama kind, whose projections are named as ours."""
    from transformers import AutoConfig
    from transformers.cache_utils import DynamicCache

    module = load(f"transformers.models.{name}.modeling_{name}", "transformers")
    config = AutoConfig.for_model(
        name,
        hidden_size=layer.hidden_size,
        num_attention_heads=layer.num_heads,
        num_hidden_layers=1,
        attn_implementation="sdpa",
        **options,
    )
    family = {"llama": "Llama", "mistral": "Mistral", "deepseek_v3": "DeepseekV3"}[name]
    theirs = getattr(module, f"{family}Attention")(config, 0).to(device, layer.o_proj.weight.dtype).eval()
    theirs.load_state_dict(layer.state_dict())
    return Theirs(theirs, DynamicCache(config=config), getattr(module, f"{family}RotaryEmbedding")(config).to(device))


def _softmax(layer: Any, device: str) -> Theirs:
    return _rotary("llama", layer, device, num_key_value_heads=layer.num_kv_heads)


def _sliding_window(layer: Any, device: str) -> Theirs:
    options = {"num_key_value_heads": layer.num_kv_heads, "sliding_window": layer.window_size}
    return _rotary("mistral", layer, device, **options)


def _latent(layer: Any, device: str) -> Theirs:
    return _rotary(
        "deepseek_v3",
        layer,
        device,
        num_key_value_heads=layer.num_heads,
        kv_lora_rank=layer.kv_rank,
        q_lora_rank=layer.q_rank,
        qk_nope_head_dim=layer.nope_dim,
        qk_rope_head_dim=layer.rotary_dim,
        v_head_dim=layer.value_dim,
        head_dim=layer.rotary_dim,
        rope_parameters={"rope_type": "default", "rope_theta": layer.rotary},
    )


def _lightning(layer: Any, device: str) -> Theirs:
    module = load(MINIMAX, "transformers")
    return Theirs(_WithoutPositions(minimax_layer(module, layer)), module.MiniMaxCache())


class _WithoutPositions(nn.Module):
    """MiniMax's lightning layer, which takes positions and ignores them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, **options: Any) -> Any:
        return self.layer(hidden_states, position_embeddings=None, **options)


def _gated_deltanet(layer: Any, device: str) -> Theirs:
    from transformers.cache_utils import DynamicCache

    module = load("transformers.models.olmo_hybrid.modeling_olmo_hybrid", "transformers")
    if device == "cpu":  # where fla is installed, the names lead to its kernels, which need a GPU
        for name in ("chunk_gated_delta_rule", "recurrent_gated_delta_rule"):
            setattr(module, f"torch_{name}", inspect.unwrap(getattr(module, f"torch_{name}")))
        for name in ("causal_conv1d_fn", "causal_conv1d_update"):
            setattr(module, name, inspect.unwrap(getattr(module, name)))
    config = module.OlmoHybridConfig(
        hidden_size=layer.hidden_size,
        num_attention_heads=layer.num_heads,
        linear_num_key_heads=layer.num_qk_heads,
        linear_num_value_heads=layer.num_heads,
        linear_key_head_dim=layer.key_dim,
        linear_value_head_dim=layer.value_dim,
        linear_conv_kernel_dim=layer.conv_size,
        linear_allow_neg_eigval=layer.allow_neg_eigval,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
    )
    theirs, weights = module.OlmoHybridGatedDeltaNet(config, 0), dict(layer.state_dict())
    weights["conv1d.weight"] = torch.cat([weights.pop(f"{name}_conv1d.weight") for name in "qkv"])
    theirs.load_state_dict(weights)
    theirs = theirs.to(device, layer.o_proj.weight.dtype).eval()
    return Theirs(theirs, DynamicCache(config=config), named="cache_params")


PEERS_OF: dict[str, Callable[[Any, str], Theirs]] = {
    "softmax": _softmax,
    "sliding-window": _sliding_window,
    "mla": _latent,
    "lightning": _lightning,
    "gated-deltanet": _gated_deltanet,
}
