"""DeepSeek-V2's, DeepSeek-V3's and Kimi K2's attention: published sizes, and what transformers calls the same.

| from transformers | what |
| --- | --- |
| a configuration | `latent_from_transformers`: arguments of `nn.LatentAttention`; `deepseek_config_from_transformers`: of `StackConfig` |
| weights | `deepseek_from_transformers`: what `StackForCausalLM.load_state_dict` takes |
| weights by the names of DeepSeek's own code | `deepseek_from_original`: the same |

DeepSeek's own inference code renames its published files (`wq_a`, `kv_norm`, `wkv_b`, `wo`, ..) and changes no number:
neighbouring channels turn against each other in both, and keys and values of a head follow each other in `wkv_b`.

`self_attn.*` of one layer is the state_dict of `nn.LatentAttention` as it is: V2 and V3 differ in the order in which they
write turned channels down, which no score sees. The published models have experts in most layers; here every layer has the
gated MLP of their first ones, so that a stack is their attention and no more.

The presets' numbers are those of the published configurations. transformers 5 holds V3's as its defaults and of V2 the
attention's widths alone; where Megatron-Bridge 0.3.1 states a number itself it agrees, Kimi K2's positions (base 50000,
stretched 32 times, both betas 1) included. Kimi K2's later versions stretch further; set `mixer_options` for these.
"""  # noqa: E501

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from attensor.models.convert import Rule, convert, kept_options, need_options, require_options
from attensor.ops._checks import checked

__all__ = [
    "PRESETS",
    "deepseek_config_from_transformers",
    "deepseek_from_original",
    "deepseek_from_transformers",
    "latent_from_transformers",
    "refuse_packed",
]

_WIDTHS = {"kv_rank": 512, "nope_dim": 128, "rotary_dim": 64, "value_dim": 128}
_YARN = {"factor": 40.0, "original_length": 4096, "base": 10_000.0, "beta_fast": 32.0, "beta_slow": 1.0}


def _preset(size: tuple[int, int, int, int], vocab_size: int, q_rank: int | None, **yarn: float) -> dict[str, Any]:
    layers, width, heads, inside = size
    options = {**_WIDTHS, "q_rank": q_rank, "rotary": {**_YARN, **yarn}}
    return {
        "layers": "mla",
        "mixer_options": {"mla": options},
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": inside,
        "vocab_size": vocab_size,
        "bos_token_id": None,  # random weights end no text; those of a checkpoint come with its configuration
        "eos_token_id": None,
    }


_V2 = {"mscale": 0.707, "mscale_all_dim": 0.707}
_V3 = {"mscale": 1.0, "mscale_all_dim": 1.0}

# layers, channels, heads and width of the gated MLP of the layers without experts
PRESETS: dict[str, dict[str, Any]] = {
    "deepseek-v2-lite-attention": _preset((27, 2048, 16, 10_944), 102_400, None, **_V2),
    "deepseek-v2-attention": _preset((60, 5120, 128, 12_288), 102_400, 1536, **_V2),
    "deepseek-v3-attention": _preset((61, 7168, 128, 18_432), 129_280, 1536, **_V3),
    "kimi-k2-attention": _preset(
        (61, 7168, 64, 18_432), 163_840, 1536, **_V3, base=50_000.0, factor=32.0, beta_fast=1.0
    ),
}


_NEEDED = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def latent_from_transformers(config: Any) -> dict[str, Any]:
    """Arguments of `nn.LatentAttention` for a configuration of DeepSeek-V2 or V3, one of transformers or its JSON.

    Args:
        config: a `DeepseekV2Config` or `DeepseekV3Config`, or the content of a config.json, whose positions are in
            `rope_parameters` (transformers 5) or in `rope_theta` and `rope_scaling` (before).
    Raises:
        ValueError: no such configuration, a width is missing, or what has no counterpart here: biases, halves that turn
            against each other, other positions.
    """
    name = "latent_from_transformers"
    given = _as_mapping(name, config)
    need_options(name, given, "hidden_size", "num_attention_heads", *_NEEDED)
    require_options(name, given, {"attention_bias": False, "rope_interleave": True, "attention_dropout": 0.0})
    heads = given["num_attention_heads"]
    if given.get("num_key_value_heads") not in (None, heads):
        raise ValueError(
            f"{name}: num_key_value_heads must be num_attention_heads {heads}, as latent attention has no groups of "
            f"heads, got {given['num_key_value_heads']}."
        )
    return {
        "hidden_size": given["hidden_size"],
        "num_heads": heads,
        "kv_rank": given["kv_lora_rank"],
        "q_rank": given.get("q_lora_rank"),
        "nope_dim": given["qk_nope_head_dim"],
        "rotary_dim": given["qk_rope_head_dim"],
        "value_dim": given["v_head_dim"],
        "rotary": _positions(name, given),
    }


def deepseek_config_from_transformers(config: Any) -> dict[str, Any]:
    """Arguments of `StackConfig` for a configuration of DeepSeek-V2 or V3: their attention, a gated MLP in every layer.

    Raises:
        ValueError: see `latent_from_transformers`; an activation or biases that the stack does not have.
    """
    given = _as_mapping("deepseek_config_from_transformers", config)
    require_options(
        "deepseek_config_from_transformers", given, {"hidden_act": "silu", "mlp_bias": False, "pretraining_tp": 1}
    )
    options = latent_from_transformers(given)
    same = ("vocab_size", "num_hidden_layers", "intermediate_size", "initializer_range", "tie_word_embeddings")
    return {
        **kept_options(given, (*same, "pad_token_id", "bos_token_id", "eos_token_id")),
        "hidden_size": options.pop("hidden_size"),
        "num_attention_heads": options.pop("num_heads"),
        "norm_eps": given.get("rms_norm_eps", 1e-6),
        "layers": "mla",
        "mixer_options": {"mla": options},
    }


@checked
def deepseek_from_transformers(state_dict: Mapping[str, Tensor], *, attention_only: bool = False) -> dict[str, Tensor]:
    """Weights of DeepSeek-V2 and V3 by the names of a stack; no tensor is copied.

    Args:
        state_dict: `model.layers.{i}.self_attn.kv_b_proj.weight` and so on, of a model without experts.
        attention_only: leave everything but the attention out, so that layers with experts may be there; load it with
            `strict=False`.
    Raises:
        ValueError: experts, weights of 8 bits or packed ones, an adapter, or a name of another layout.
    """
    return _converted("deepseek_from_transformers", state_dict, _RULES, ".self_attn.", attention_only)


def deepseek_from_original(state_dict: Mapping[str, Tensor], *, attention_only: bool = False) -> dict[str, Tensor]:
    """Weights by the names of DeepSeek's own inference code as those of a stack; no tensor is copied.

    Args:
        state_dict: `layers.{i}.attn.wkv_b.weight` and so on, whole: what its convert.py writes with
            `--model-parallel 1` (one of several parts has fewer heads, which `load_state_dict` then refuses).
        attention_only: see `deepseek_from_transformers`.
    Raises:
        ValueError: experts, weights of 8 bits or packed ones, an adapter, or a name of another layout.
    """
    return _converted("deepseek_from_original", state_dict, _ORIGINAL, ".attn.", attention_only)


def _converted(
    name: str, state_dict: Mapping[str, Tensor], rules: Sequence[Rule], attention: str, attention_only: bool
) -> dict[str, Tensor]:
    refuse_packed(name, state_dict)
    if attention_only:
        return convert(name, {key: x for key, x in state_dict.items() if attention in key}, rules)
    if experts := [key for key in state_dict if ".experts." in key or ".shared_experts." in key]:
        raise ValueError(
            f"{name}: state_dict has experts, which a stack does not have, the first is {experts[0]!r}; take the "
            "attention with attention_only=True."
        )
    return convert(name, state_dict, rules)


def refuse_packed(name: str, tensors: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose latent layers are not plain matrices.

    Args:
        name: who asks, for the message.
        tensors: by name; the values are not looked at.
    Raises:
        ValueError: scales of 8-bit weights, packed weights, or an adapter.
    """
    for key in tensors:
        if key.endswith(("_scale_inv", ".weight_scale", ".scale")):
            raise ValueError(
                f"{name}: {key!r} belongs to weights of 8 bits in blocks; convert the checkpoint to bfloat16 first, as "
                "with fp8_cast_bf16.py of the model's own repository."
            )
        if ".lora_" in key or ".base_layer." in key:
            raise ValueError(f"{name}: {key!r} belongs to an adapter; merge it into the weights first.")
        if key.endswith((".qweight", ".qzeros", ".weight.absmax", ".SCB")):
            raise ValueError(f"{name}: {key!r} belongs to quantised weights; start from the checkpoint before that.")


def _as_mapping(name: str, config: Any) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    if not hasattr(config, "to_dict"):
        raise TypeError(
            f"{name}: config must be one of transformers or the content of a config.json, got {type(config).__name__}."
        )
    found: Mapping[str, Any] = config.to_dict()
    return found


def _positions(name: str, config: Mapping[str, Any]) -> float | dict[str, float]:
    """The base of rotary positions, or the attributes of `Yarn`."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    base = float(rope.get("rope_theta", config.get("rope_theta") or 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return base
    if kind != "yarn" or not rope.get("truncate", True):
        raise ValueError(
            f"{name}: rotary positions must be plain or stretched by YaRN with truncated corners, got {kind!r}; give "
            "rotary=Frequencies(...) to nn.LatentAttention for others."
        )
    length = int(rope.get("original_max_position_embeddings") or config["max_position_embeddings"])
    factor = rope.get("factor") or config["max_position_embeddings"] / length
    return {
        "factor": float(factor),
        "original_length": length,
        "base": base,
        "beta_fast": float(rope.get("beta_fast") or 32),
        "beta_slow": float(rope.get("beta_slow") or 1),
        **_gains(rope, float(factor)),
    }


def _gains(rope: Mapping[str, Any], factor: float) -> dict[str, float]:
    """`mscale` and `mscale_all_dim`; where the gain of turned channels is given otherwise, the mscale that makes it."""
    everywhere = float(rope.get("mscale_all_dim") or 0)
    if rope.get("attention_factor") is None and rope.get("mscale") and everywhere:
        return {"mscale": float(rope["mscale"]), "mscale_all_dim": everywhere}
    if rope.get("attention_factor") is None and not everywhere:
        return {"mscale": 1.0, "mscale_all_dim": 0.0}
    steep = 0.1 * math.log(factor) if factor > 1 else 0.0
    gain = float(rope.get("attention_factor") or 1 + steep)
    if not steep and gain != 1:
        raise ValueError(f"latent_from_transformers: attention_factor must be 1 where factor is {factor}, got {gain}.")
    return {
        "mscale": (gain * (1 + everywhere * steep) - 1) / steep if steep else 1.0,
        "mscale_all_dim": everywhere,
    }


_LAYER, _NEW = r"model\.layers\.(\d+)\.", r"model.layers.\1."
_RULES = (
    Rule(r"((?:model\.embed_tokens|model\.norm|lm_head)\.weight)", (r"\1",)),
    Rule(_LAYER + r"((?:input|post_attention)_layernorm\.weight)", (_NEW + r"\2",)),
    Rule(
        _LAYER + r"self_attn\.((?:q_proj|q_a_proj|q_a_layernorm|q_b_proj|kv_a_proj_with_mqa|kv_a_layernorm|kv_b_proj|"
        r"o_proj)\.weight)",
        (_NEW + r"attn.\2",),
    ),
    Rule(_LAYER + r"(mlp\.(?:gate|up|down)_proj\.weight)", (_NEW + r"\2",)),
)

# from the name in DeepSeek's own code to that of a stack; of one tensor each
_MODEL = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn.wq": "attn.q_proj",
    "attn.wq_a": "attn.q_a_proj",
    "attn.q_norm": "attn.q_a_layernorm",
    "attn.wq_b": "attn.q_b_proj",
    "attn.wkv_a": "attn.kv_a_proj_with_mqa",
    "attn.kv_norm": "attn.kv_a_layernorm",
    "attn.wkv_b": "attn.kv_b_proj",
    "attn.wo": "attn.o_proj",
    "ffn.w1": "mlp.gate_proj",
    "ffn.w2": "mlp.down_proj",
    "ffn.w3": "mlp.up_proj",
}
_ORIGINAL = (
    *(Rule(rf"{old}\.weight", (f"{new}.weight",)) for old, new in _MODEL.items()),
    *(
        Rule(rf"layers\.(\d+)\.{re.escape(old)}\.weight", (rf"model.layers.\1.{new}.weight",))
        for old, new in _IN_LAYER.items()
    ),
)
