"""Configurations and weights of transformers' DeepSeek-V2 and V3 become a stack here that computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attensor.models.language.deepseek import (
    PRESETS,
    deepseek_config_from_transformers,
    deepseek_from_original,
    deepseek_from_transformers,
    latent_from_transformers,
)
from attensor.models.language.stack import StackConfig, StackForCausalLM
from attensor.nn import LatentAttention
from tests.oracles.test_latent import _in_double as _in_double  # their float32 is float64
from tests.oracles.test_latent import forward

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 6,
    "v_head_dim": 5,
    "vocab_size": 31,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 2,
    "max_position_embeddings": 640,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "attn_implementation": "eager",
}
STRETCHED = {"factor": 40.0, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1}
POSITIONS: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default", "rope_theta": 500.0},
    "V2": {"rope_type": "yarn", "rope_theta": 1e4, **STRETCHED, "mscale": 0.707, "mscale_all_dim": 0.707},
    "K2": {"rope_type": "yarn", "rope_theta": 5e4, **STRETCHED, "beta_fast": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    "two gains": {"rope_type": "yarn", "rope_theta": 1e4, **STRETCHED, "mscale": 1.0, "mscale_all_dim": 0.5},
    "one gain": {"rope_type": "yarn", "rope_theta": 1e4, **STRETCHED, "mscale": 0.707},
    "the other gain": {"rope_type": "yarn", "rope_theta": 1e4, **STRETCHED, "mscale_all_dim": 0.707},
    "its own gain": {"rope_type": "yarn", "rope_theta": 1e4, **STRETCHED, "attention_factor": 1.3},
    "no stretch": {"rope_type": "yarn", "rope_theta": 1e4, **STRETCHED, "factor": 1.0},
}
CLASSES = {
    2: (transformers.DeepseekV2Config, transformers.DeepseekV2ForCausalLM),
    3: (transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM),
}


def theirs(version: int, positions: str, **changes: Any) -> Any:
    config_type, model_type = CLASSES[version]
    torch.manual_seed(0)
    config = config_type(**{**SIZES, "rope_parameters": dict(POSITIONS[positions]), **changes})
    model = model_type(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms of ones would hide a weight that is not used
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def near(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-10 * expected.norm())


@torch.no_grad()
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("version", "q_rank"), [(2, None), (2, 7), (3, 7)])
def test_a_layer_takes_their_configuration_and_weights(version: int, q_rank: int | None, positions: str) -> None:
    model = theirs(version, positions, q_lora_rank=q_rank)
    layer = LatentAttention(**latent_from_transformers(model.config), dtype=torch.float64)
    begin = "model.layers.1.self_attn."
    layer.load_state_dict({k.removeprefix(begin): x for k, x in model.state_dict().items() if k.startswith(begin)})
    x = torch.randn(2, 50, 24, dtype=torch.float64)
    assert near(layer(x), forward(model.model.layers[1].self_attn, model.model.rotary_emb, x))


@torch.no_grad()
@pytest.mark.parametrize("positions", ["plain", "V2", "K2"])
@pytest.mark.parametrize("version", [2, 3])
def test_a_stack_is_their_model_also_while_decoding(version: int, positions: str) -> None:
    model = theirs(version, positions, q_lora_rank=7)
    ours = StackForCausalLM(StackConfig(**deepseek_config_from_transformers(model.config))).double().eval()
    ours.load_state_dict(deepseek_from_transformers(model.state_dict()))
    tokens = torch.randint(0, 31, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = model(tokens).logits
    assert near(ours(tokens).logits, expected)
    past, theirs_past, found = None, None, []
    for piece in tokens.split([20, *[1] * 20], 1):
        step = ours(piece, past_key_values=past, use_cache=True)
        their_step = model(piece, past_key_values=theirs_past, use_cache=True)
        past, theirs_past = step.past_key_values, their_step.past_key_values
        assert near(step.logits, their_step.logits)
        found.append(step.logits)
    assert near(torch.cat(found, 1), expected)


# as the convert.py of DeepSeek's repository renames what it publishes
THEIR_NAMES = {
    "model.": "", "embed_tokens": "embed", "lm_head": "head", "self_attn": "attn", "mlp.": "ffn.",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "q_a_proj": "wq_a", "q_b_proj": "wq_b",
    "q_a_layernorm": "q_norm", "kv_a_proj_with_mqa": "wkv_a", "kv_a_layernorm": "kv_norm", "kv_b_proj": "wkv_b",
    "q_proj": "wq", "o_proj": "wo", "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3",
    "e_score_correction_bias": "bias",
}  # fmt: skip


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors in another order, by the names of DeepSeek's own code."""
    found = {}
    for name in sorted(state, key=lambda name: name[::-1]):
        new = name
        for old, theirs_ in THEIR_NAMES.items():
            new = new.replace(old, theirs_)
        found[new] = state[name]
    assert not any("proj" in name or "layernorm" in name for name in found)
    return found


@torch.no_grad()
@pytest.mark.parametrize(("version", "q_rank"), [(2, None), (2, 7), (3, 7)])
def test_names_of_their_own_code_are_the_same_model(version: int, q_rank: int | None) -> None:
    model = theirs(version, "V2", q_lora_rank=q_rank)
    ours = StackForCausalLM(StackConfig(**deepseek_config_from_transformers(model.config))).double().eval()
    found = deepseek_from_original(renamed(model.state_dict()))
    assert found.keys() == ours.state_dict().keys()
    assert all(x.shape == ours.state_dict()[name].shape for name, x in found.items())
    ours.load_state_dict(found)
    tokens = torch.randint(0, 31, (2, 40), generator=torch.Generator().manual_seed(1))
    assert near(ours(tokens).logits, model(tokens).logits)


@torch.no_grad()
def test_their_layer_written_out_by_its_own_names_is_ours() -> None:
    """Neighbouring channels as complex numbers, in place; keys before values within each head of wkv_b."""
    generator = torch.Generator().manual_seed(2)
    c, heads, rank, q_rank, nope, rotary, value, tokens = 24, 3, 10, 7, 4, 6, 5, 11
    shapes = {
        "wq_a": (q_rank, c), "q_norm": (q_rank,), "wq_b": (heads * (nope + rotary), q_rank),
        "wkv_a": (rank + rotary, c), "kv_norm": (rank,), "wkv_b": (heads * (nope + value), rank),
        "wo": (c, heads * value),
    }  # fmt: skip
    w = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    x = torch.randn(2, tokens, c, generator=generator, dtype=torch.float64)
    turns = torch.outer(torch.arange(tokens), 1e4 ** (-torch.arange(0, rotary, 2, dtype=torch.float64) / rotary))

    def norm(t: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.rms_norm(t, (len(weight),), weight, 1e-6)

    def turn(t: Tensor) -> Tensor:  # [B, T, heads, rotary]
        pairs = torch.view_as_complex(t.reshape(*t.shape[:-1], rotary // 2, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(turns), turns)[:, None]).flatten(-2)

    q = (norm(x @ w["wq_a"].T, w["q_norm"]) @ w["wq_b"].T).unflatten(-1, (heads, -1))
    latent, key = (x @ w["wkv_a"].T).split([rank, rotary], -1)
    kv = (norm(latent, w["kv_norm"]) @ w["wkv_b"].T).unflatten(-1, (heads, -1))
    scores = torch.einsum("bshd,bthd->bhst", q[..., :nope], kv[..., :nope])
    scores = scores + torch.einsum("bshr,btr->bhst", turn(q[..., nope:]), turn(key[..., None, :])[..., 0, :])
    scores = scores * (nope + rotary) ** -0.5 + torch.full((tokens, tokens), -torch.inf, dtype=x.dtype).triu(1)
    out = torch.einsum("bhst,bthd->bshd", scores.softmax(-1), kv[..., nope:]).flatten(2) @ w["wo"].T
    sizes = {"kv_rank": rank, "q_rank": q_rank, "nope_dim": nope, "rotary_dim": rotary, "value_dim": value}
    layer = LatentAttention(c, heads, **sizes, dtype=torch.float64)
    state = deepseek_from_original({f"layers.4.attn.{name}.weight": x for name, x in w.items()}, attention_only=True)
    layer.load_state_dict({name.removeprefix("model.layers.4.attn."): x for name, x in state.items()})
    assert near(layer(x), out)


def test_what_their_own_files_have_besides_is_refused() -> None:
    model = theirs(3, "plain", q_lora_rank=7, first_k_dense_replace=1, n_routed_experts=8, moe_intermediate_size=5)
    state = renamed(model.state_dict())
    assert "layers.1.ffn.gate.bias" in state
    with pytest.raises(ValueError, match=r"deepseek_from_original: state_dict has experts.*attention_only=True"):
        deepseek_from_original(state)
    kept = deepseek_from_original(state, attention_only=True)
    assert kept.keys() == deepseek_from_transformers(model.state_dict(), attention_only=True).keys()
    for key, message in {
        "layers.0.attn.wkv_b.scale": "weights of 8 bits",
        "model.layers.0.self_attn.kv_b_proj.weight": "not of this layout",
        "layers.0.attn.indexer.wq_b.weight": "not of this layout",
    }.items():
        with pytest.raises(ValueError, match=message):
            deepseek_from_original({key: torch.zeros(1)}, attention_only=".attn." in key)


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_old_layout_of_positions_is_the_same(positions: str) -> None:
    new = {**SIZES, "q_lora_rank": 7, "rope_parameters": POSITIONS[positions]}
    rope = dict(POSITIONS[positions])
    old = {**SIZES, "q_lora_rank": 7, "rope_theta": rope.pop("rope_theta")}
    rope["type"] = rope.pop("rope_type")
    old["rope_scaling"] = None if rope["type"] == "default" else rope
    assert latent_from_transformers(old) == latent_from_transformers(new)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias must be False"),
        ({"rope_interleave": False}, "rope_interleave must be True"),
        ({"num_key_value_heads": 1}, "num_key_value_heads must be num_attention_heads 3"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "plain or stretched by YaRN .*, got 'linear'"),
    ],
)
def test_what_has_no_counterpart_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_from_transformers({**SIZES, **change})


def test_experts_packed_weights_and_adapters_are_refused() -> None:
    model = theirs(3, "plain", q_lora_rank=7, first_k_dense_replace=1, n_routed_experts=8, moe_intermediate_size=5)
    state = model.state_dict()
    with pytest.raises(ValueError, match=r"state_dict has experts.*attention_only=True"):
        deepseek_from_transformers(state)
    kept = deepseek_from_transformers(state, attention_only=True)
    stack = StackForCausalLM(StackConfig(**deepseek_config_from_transformers(model.config)))
    assert kept.keys() == {key for key in stack.state_dict() if ".attn." in key}
    for key, message in {
        "model.layers.0.self_attn.kv_b_proj.weight_scale_inv": "weights of 8 bits",
        "model.layers.0.self_attn.kv_b_proj.lora_A.default.weight": "an adapter; merge it",
        "model.layers.0.self_attn.kv_b_proj.qweight": "quantised weights",
        "model.layers.0.self_attn.rotary.weight": "not of this layout",
    }.items():
        with pytest.raises(ValueError, match=message):
            deepseek_from_transformers({key: torch.zeros(1)})


# what transformers itself says of the published models; the rest of the presets is in the text of `deepseek.py`
DEFAULTS = {
    "deepseek-v3-attention": (transformers.DeepseekV3Config, set()),
    "deepseek-v2-attention": (
        transformers.DeepseekV2Config,
        {"hidden_size", "num_heads", "num_hidden_layers", "intermediate_size"},
    ),
}


@pytest.mark.parametrize("preset", DEFAULTS)
def test_presets_are_their_defaults(preset: str) -> None:
    kind, others = DEFAULTS[preset]
    expected = deepseek_config_from_transformers(kind(rope_parameters=dict(POSITIONS["plain"])))
    found = StackConfig.from_preset(preset)
    sizes = {"hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"} - others
    assert {name: getattr(found, name) for name in sizes} == {name: expected[name] for name in sizes}
    widths = ("kv_rank", "q_rank", "nope_dim", "rotary_dim", "value_dim")
    for name in widths:
        assert found.mixer_options["mla"][name] == expected["mixer_options"]["mla"][name]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_of_any_depth_decodes(preset: str) -> None:
    with torch.device("meta"):
        whole = StackForCausalLM(StackConfig.from_preset(preset, num_hidden_layers=1))
    attention = whole.model.layers[0].attn
    assert attention.kv_rank + attention.rotary_dim == 576
    small = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 2, "vocab_size": 50}
    model = StackForCausalLM(StackConfig.from_preset(preset, num_hidden_layers=2, **small)).eval()
    assert len(model.model.layers) == 2
    tokens = torch.arange(4)[None]
    assert model.generate(tokens, max_new_tokens=3, do_sample=False).shape == (1, 7)


def test_a_preset_is_not_changed_by_who_takes_it() -> None:
    StackConfig.from_preset("deepseek-v3-attention").mixer_options["mla"]["kv_rank"] = 1
    assert PRESETS["deepseek-v3-attention"]["mixer_options"]["mla"]["kv_rank"] == 512
