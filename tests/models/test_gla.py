"""The GLA Transformer: its published sizes, its layout, and the formula of a block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from attensor.models.language.gla import GLAConfig, GLAForCausalLM
from attensor.ops import linear_attention_reference
from tests.models.families import build, config, tokens


@pytest.mark.parametrize(("preset", "parameters"), [("340M", 374_475_776), ("1.3B", 1_365_514_240)])
def test_presets_have_the_published_number_of_parameters(preset: str, parameters: int) -> None:
    """374.5M and 1365.5M, counted on flash-linear-attention's models with 32,000 tokens and an untied head."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GLAConfig.from_preset(preset))
    assert isinstance(model, GLAForCausalLM)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    tied = GLAConfig.from_preset(preset, tie_word_embeddings=True, vocab_size=100)
    assert (tied.vocab_size, tied.num_hidden_layers, tied.num_heads) == (100, 24, 4)
    with torch.device("meta"):
        smaller = AutoModelForCausalLM.from_config(tied)
    assert smaller.num_parameters() == parameters - (2 * 32_000 - 100) * tied.hidden_size


def test_configuration_names() -> None:
    assert GLAConfig() == GLAConfig.from_preset("340M")
    made = AutoConfig.for_model("attensor_gla", num_kv_heads=2, num_layers=5, norm="layer")
    assert isinstance(made, GLAConfig)
    assert (made.num_key_value_heads, made.num_hidden_layers, made.norm) == (2, 5, "layer")
    with pytest.raises(ValueError, match=r"GLAConfig: preset must be one of 340M, 1.3B, got '7B'"):
        GLAConfig.from_preset("7B")
    with pytest.raises(ValueError, match="norm must be one of"):
        GLAForCausalLM(config("gla", norm="batch"))
    with pytest.raises(ValueError, match="num_heads 5"):
        GLAForCausalLM(config("gla", num_attention_heads=5))


@pytest.mark.parametrize("variant", ["gla", "gla-first-code"])
def test_a_model_is_its_formula(variant: str) -> None:
    """Logits from the definition, written down with the weights and the token-by-token recurrence."""
    model, rows = build(variant), tokens(2, 7)
    weights, first = model.state_dict(), variant == "gla-first-code"
    assert weights["model.layers.0.attn.k_proj.weight"].shape == (2 if first else 6, 12)
    x = weights["model.embed_tokens.weight"][rows]
    for index in range(2):
        x = x + _mixer(x, _below(weights, f"model.layers.{index}."), first)
        x = x + _mlp(x, _below(weights, f"model.layers.{index}."))
    logits = _rms(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].mT
    torch.testing.assert_close(model(rows).logits, logits, rtol=1e-9, atol=1e-9)


def _below(weights: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def _mixer(x: torch.Tensor, w: dict[str, Any], first: bool) -> torch.Tensor:
    x = _rms(x, w["input_layernorm.weight"])
    q, k, v = (F.linear(x, w[f"attn.{name}_proj.weight"]) for name in "qkv")
    gate = F.linear(x, w["attn.gk_proj.0.weight"]) @ w["attn.gk_proj.1.weight"].mT + w["attn.gk_proj.1.bias"]
    log_decay = torch.log(torch.sigmoid(gate)) / 16
    if first:
        assert (log_decay < -0.04).any()
        log_decay = log_decay.clamp_min(-0.04)
    q, k, v, log_decay = (t.unflatten(-1, (-1, width)) for t, width in ((q, 2), (k, 2), (v, 4), (log_decay, 2)))
    out, _ = linear_attention_reference(q, k, v, log_decay=log_decay, scale=2**-0.5)
    if first:
        centred = out - out.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    else:
        normed = _rms(out, w["attn.g_norm.weight"])
    r = F.linear(x, w["attn.g_proj.weight"], w.get("attn.g_proj.bias"))
    return F.linear(normed.flatten(-2) * r * torch.sigmoid(r), w["attn.o_proj.weight"])


def _mlp(x: torch.Tensor, w: dict[str, Any]) -> torch.Tensor:
    x = _rms(x, w["post_attention_layernorm.weight"])
    gate = F.linear(x, w["mlp.gate_proj.weight"])
    return F.linear(gate * torch.sigmoid(gate) * F.linear(x, w["mlp.up_proj.weight"]), w["mlp.down_proj.weight"])
