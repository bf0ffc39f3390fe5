"""Checkpoints of other projects, renamed and cut to the layout of the models here: pure functions on state dicts.

| from | weights | configuration |
| --- | --- | --- |
| OpenNLPLab's TransNormerLLM | `transnormer_from_official` | `transnormer_config_from_official` |
| flash-linear-attention's GLA | `gla_from_fla` | `gla_config_from_fla` |
| the first GLA code (berlino, bailin28) | `gla_from_first_code` | `gla_config_from_first_code` |
| PLDR-LLM, the paper's code and its port to transformers | `pldr_from_official` | `pldr_config_from_official` |

The first returns what `load_state_dict` takes, the second the arguments of a configuration here. No model
code of the other project runs, and transformers is not needed. Nothing is copied that need not be: new tensors share
memory with the old ones where only names change. A checkpoint without `lm_head.weight` is a tied one, and its embedding
table stands there too; so give all files of a checkpoint at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from attensor.models.convert import Rule, convert, kept_options, need_options, require_options
from attensor.ops._checks import checked

__all__ = [
    "gla_config_from_first_code",
    "gla_config_from_fla",
    "gla_from_first_code",
    "gla_from_fla",
    "pldr_config_from_official",
    "pldr_from_official",
    "transnormer_config_from_official",
    "transnormer_from_official",
]


@checked
def transnormer_from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of OpenNLPLab's TransNormerLLM checkpoints (385M, 1B, 7B, 15B).

    `qkvu_proj` [4 C, C] is cut into queries, keys, values and gate; norms have no weights.

    Args:
        state_dict: `model.layers.{i}.token_mixer.qkvu_proj.weight` and so on.
    Raises:
        ValueError: a name of another layout (biases, for instance).
    """
    return _with_head(convert("transnormer_from_official", state_dict, _TRANSNORMER))


@checked
def gla_from_fla(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of flash-linear-attention's GLA checkpoints (`fla-hub/gla-340M-15B`, `fla-hub/gla-1.3B-100B`).

    Args:
        state_dict: `model.layers.{i}.attn.g_norm_swish_gate.weight` and so on, or `g_norm` without fused norm.
    Raises:
        ValueError: a name of another layout (short convolutions, for instance).
    """
    return _with_head(convert("gla_from_fla", state_dict, _FLA))


@checked
def gla_from_first_code(
    state_dict: Mapping[str, Tensor],
    *,
    num_heads: int,
    revision: Literal["fla kernels", "December 2023"] = "fla kernels",
) -> dict[str, Tensor]:
    """Weights of the paper's first code (`bailin28/gla-1B-100B`): build the model with `norm="layer", gate_bias=True`.

    That code multiplies keys by (C / H)^-1/2. Its own kernels of December 2023 do no more; since January 2024 it calls
    flash-linear-attention's, which by default multiply queries by (C / 2 / H)^-1/2, as is done here. What is missing
    here goes into the weights of the keys, computed in float32: (C / H)^-1/2, or 2^-1/2 for December 2023. The
    logits differ, because the norm of each head adds its `eps`. With which of the two the published checkpoint was
    trained is not known.

    Args:
        state_dict: `transformer.h.{i}.attn.k_gate.0.weight` and so on.
        num_heads: H, `n_head` of its configuration.
        revision: `"fla kernels"`, what the authors' code computes with the checkpoint today, or `"December 2023"`.
    Raises:
        ValueError: a name of another layout, or an unknown revision.
    """
    cut = partial(_scaled_keys, num_heads=None if revision == "December 2023" else num_heads)
    keys = Rule(_OLD_LAYER + r"attn\.k_proj\.weight", (_NEW + "attn.k_proj.weight",), cut)
    return _with_head(convert("gla_from_first_code", state_dict, (keys, *_FIRST_CODE)))


@checked
def pldr_from_official(
    state_dict: Mapping[str, Tensor], *, operators: Sequence[Tensor] | None = None
) -> dict[str, Tensor]:
    """Weights of PLDR-LLM checkpoints: `PLDR-LLM-with-KVG-cache`, and the port's `fromthesky/PLDR-LLM-v51-110M-3`.

    Both have the same names; the port adds the buffers of a predefined operator, [layers, 3, 1, H, D, D], of which the
    last of three is taken. The paper's code keeps that one in a file of its own.

    Args:
        state_dict: `decoder.dec_layers.{i}.mha1.wq.weight` and so on; `module.` before all names is left out.
        operators: [H, D, D] of each layer, where they are predefined and not in the checkpoint.
    Raises:
        ValueError: a name of another layout.
    """
    known = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    held = known.pop("decoder.past_G_values", None)
    known.pop("decoder.past_G_values_status", None)
    found = convert("pldr_from_official", known, _PLDR)
    if operators is None and held is not None:
        operators = [layer[2, 0] for layer in held]
    named = {f"model.layers.{i}.attn.fixed_operator": one for i, one in enumerate(operators or ())}
    return {**found, **named}


@checked
def transnormer_config_from_official(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `TransNormerConfig` for an official configuration (the content of its config.json).

    Raises:
        ValueError: a size is missing, or a part that the published models do not use: another norm, activation or inner
            width, biases.
    """
    name = "transnormer_config_from_official"
    need_options(name, config, "decoder_embed_dim", "decoder_layers", "decoder_attention_heads")
    width = config["decoder_embed_dim"]
    published = {"norm_type": "simplermsnorm", "linear_act_fun": "silu", "hidden_dim": width, "bias": False}
    require_options(name, config, published)
    inside = config.get("glu_dim", -1)
    lrpe = config.get("linear_use_lrpe_list") or [0] * config["decoder_layers"]
    return {
        **kept_options(config, _TOKENS),
        "hidden_size": width,
        "intermediate_size": width if inside == -1 else inside,
        "num_hidden_layers": config["decoder_layers"],
        "num_attention_heads": config["decoder_attention_heads"],
        "lrpe_layers": [layer for layer, used in enumerate(lrpe) if used],
        "scale_embedding": not config.get("no_scale_embedding", False),
        "initializer_range": config.get("init_std", 0.02),
    }


@checked
def gla_config_from_fla(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `GLAConfig` for a configuration of flash-linear-attention.

    Raises:
        ValueError: a size is missing, or an option has no counterpart here, such as short convolutions or layers of
            softmax attention.
    """
    require_options("gla_config_from_fla", config, _FLA_OPTIONS)
    need_options("gla_config_from_fla", config, "hidden_size", "num_heads")
    width = config["hidden_size"]
    inside = config.get("intermediate_size") or _swiglu_width(width, config.get("hidden_ratio") or 4)
    return {
        **kept_options(config, (*_TOKENS, "num_hidden_layers", "norm_eps", "initializer_range", "clamp_min")),
        "hidden_size": width,
        "intermediate_size": inside,
        "num_attention_heads": config["num_heads"],
        "num_key_value_heads": config.get("num_kv_heads"),
    }


@checked
def gla_config_from_first_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `GLAConfig` for a configuration of the paper's first code.

    Raises:
        ValueError: a size is missing, gates on values, or none on keys.
    """
    require_options("gla_config_from_first_code", config, {"use_gk": True, "use_gv": False})
    need_options("gla_config_from_first_code", config, "d_model", "n_layer", "n_head")
    return {
        **kept_options(config, _TOKENS),
        "hidden_size": config["d_model"],
        "intermediate_size": _swiglu_width(config["d_model"], 4),
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": config["n_head"],
        "norm": "layer",
        "gate_bias": True,
        "norm_eps": 1e-5,
    }


@checked
def pldr_config_from_official(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `PLDRConfig` for the port's configuration, or the paper's hyperparameters by the port's names.

    The operator is the trained one, made of the whole input: `operator="sequence"`.

    Raises:
        ValueError: a part that the published models do not use, such as scaled rotary positions.
    """
    published = {
        "hidden_act": "silu", "layer_norm_eps": 1e-6, "rope_theta": 10_000.0, "rope_scaling": None,
        "attention_bias": True, "glu_bias": True, "final_bias": True, "attention_dropout": 0.0,
    }  # fmt: skip
    require_options("pldr_config_from_official", config, published)
    custom = config.get("custom_G_type")
    names = (*_TOKENS, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    renamed = {"num_reslayerA": "units", "num_denseA": "depth", "A_dff": "net_size"}
    return {
        **kept_options(config, names),
        **{new: config[old] for old, new in renamed.items() if old in config},
        "interleaved": config.get("reference_rope", True),
        "cache_first_operator": config.get("cache_first_G", False),
        "operator": "sequence" if custom is None else "fixed",
        "custom": custom,
    }


_TOKENS = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings")

_FLA_OPTIONS = {
    "expand_k": 0.5,
    "expand_v": 1,
    "feature_map": None,
    "use_short_conv": False,
    "use_output_gate": True,
    "use_gk": True,
    "use_gv": False,
    "hidden_act": "swish",
    "elementwise_affine": True,
    "attn": None,
    "attnres_block_size": None,
}

_LAYER = r"model\.layers\.(\d+)\."
_NEW = r"model.layers.\1."

_TRANSNORMER = (
    Rule(r"((?:model\.embed_tokens|lm_head)\.weight)", (r"\1",)),
    Rule(
        _LAYER + r"token_mixer\.qkvu_proj\.weight",
        tuple(f"{_NEW}attn.{part}_proj.weight" for part in "qkvg"),
        lambda rows: rows.chunk(4),
    ),
    Rule(_LAYER + r"token_mixer\.out_proj\.weight", (_NEW + "attn.o_proj.weight",)),
    Rule(_LAYER + r"token_mixer\.lrpe\.theta", (_NEW + "attn.theta",)),
    *(
        Rule(_LAYER + rf"channel_mixer\.{old}\.weight", (f"{_NEW}mlp.{new}_proj.weight",))
        for old, new in (("l1", "gate"), ("l2", "up"), ("l3", "down"))
    ),
)

_FLA = (
    Rule(r"model\.embeddings\.weight", ("model.embed_tokens.weight",)),
    Rule(r"((?:model\.norm|lm_head)\.weight)", (r"\1",)),
    Rule(_LAYER + r"attn_norm\.weight", (_NEW + "input_layernorm.weight",)),
    Rule(_LAYER + r"mlp_norm\.weight", (_NEW + "post_attention_layernorm.weight",)),
    Rule(_LAYER + r"attn\.g_norm(?:_swish_gate)?\.weight", (_NEW + "attn.g_norm.weight",)),
    Rule(_LAYER + r"(attn\.(?:[qkvgo]_proj|gk_proj\.[01])\.weight|attn\.gk_proj\.1\.bias)", (_NEW + r"\2",)),
    Rule(_LAYER + r"(mlp\.(?:gate|up|down)_proj\.weight)", (_NEW + r"\2",)),
)

_PLDR_LAYER = r"decoder\.dec_layers\.(\d+)\."
_GLU = {"1": "gate", "2": "up", "3": "down"}

_PLDR = (
    Rule(r"decoder\.embedding\.weight", ("model.embed_tokens.weight",)),
    Rule(r"decoder\.layernorm1\.(weight|bias)", (r"model.embed_norm.\1",)),
    Rule(r"final_layer\.(weight|bias)", (r"lm_head.\1",)),
    Rule(_PLDR_LAYER + r"layernorm1\.(weight|bias)", (_NEW + r"input_layernorm.\2",)),
    Rule(_PLDR_LAYER + r"layernorm2\.(weight|bias)", (_NEW + r"post_attention_layernorm.\2",)),
    Rule(_PLDR_LAYER + r"mha1\.w([qkv])\.(weight|bias)", (_NEW + r"attn.\2_proj.\3",)),
    Rule(_PLDR_LAYER + r"mha1\.dense\.(weight|bias)", (_NEW + r"attn.o_proj.\2",)),
    Rule(_PLDR_LAYER + r"mha1\.layernorm1\.(weight|bias)", (_NEW + r"attn.norm.\2",)),
    Rule(_PLDR_LAYER + r"mha1\.reslayerAs\.(\d+)\.layernormA\.(weight|bias)", (_NEW + r"attn.net.\2.norm.\3",)),
    *(
        Rule(_PLDR_LAYER + rf"mha1\.plgatt_layer\.{old}", (f"{_NEW}attn.{new}",))
        for old, new in (
            ("Wlst", "operator_weight"), ("blst", "operator_bias"), ("pwlst", "exponent"), ("alst", "mix"),
            ("balst", "mix_bias"),
        )
    ),
    *(
        Rule(
            _PLDR_LAYER + rf"mha1\.reslayerAs\.(\d+)\.denseAs\.(\d+)\.gluw{old}\.(weight|bias)",
            (rf"{_NEW}attn.net.\2.layers.\3.{new}_\4",),
        )
        for old, new in _GLU.items()
    ),
    *(
        Rule(_PLDR_LAYER + rf"ffn\.gluw{old}\.(weight|bias)", (rf"{_NEW}mlp.{new}_proj.\2",))
        for old, new in _GLU.items()
    ),
)  # fmt: skip

_OLD_LAYER = r"transformer\.h\.(\d+)\."


def _scaled_keys(weight: Tensor, num_heads: int | None) -> tuple[Tensor]:
    factor = 2.0 if num_heads is None else weight.shape[1] / num_heads
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return ((wide * factor**-0.5).to(weight.dtype),)


_FIRST_CODE = (
    Rule(r"transformer\.wte\.weight", ("model.embed_tokens.weight",)),
    Rule(r"transformer\.ln_f\.weight", ("model.norm.weight",)),
    Rule(r"lm_head\.weight", ("lm_head.weight",)),
    Rule(_OLD_LAYER + r"ln_1\.weight", (_NEW + "input_layernorm.weight",)),
    Rule(_OLD_LAYER + r"ln_2\.weight", (_NEW + "post_attention_layernorm.weight",)),
    Rule(_OLD_LAYER + r"(attn\.(?:[qvg]_proj\.weight|g_proj\.bias))", (_NEW + r"\2",)),
    Rule(_OLD_LAYER + r"attn\.out_proj\.weight", (_NEW + "attn.o_proj.weight",)),
    Rule(_OLD_LAYER + r"attn\.k_gate\.([01]\.weight|1\.bias)", (_NEW + r"attn.gk_proj.\2",)),
    *(
        Rule(_OLD_LAYER + rf"{old}\.weight", (f"{_NEW}mlp.{new}_proj.weight",))
        for old, new in (("w1", "gate"), ("w2", "down"), ("w3", "up"))
    ),
)


def _swiglu_width(hidden_size: int, ratio: int) -> int:
    """2 / 3 of `ratio * hidden_size`, rounded up to a multiple of 256."""
    return 256 * -(-int(hidden_size * ratio * 2 / 3) // 256)


def _with_head(converted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole state dicts of tied models: the output projection is the embedding table."""
    table = converted.get("model.embed_tokens.weight")
    return converted if table is None else {"lm_head.weight": table, **converted}
