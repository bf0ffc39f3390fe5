"""Checkpoints of other projects: every name and shape finds its place, and the numbers mean the same there."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from attensor.models.language import convert
from attensor.models.language.gla import GLAConfig, GLAForCausalLM
from attensor.models.language.transnormer import TransNormerConfig, TransNormerForCausalLM
from attensor.ops import linear_attention_reference
from tests.models.families import SIZES, VOCAB, build, tokens

Shapes = dict[str, tuple[int, ...]]


def official_shapes(layers: int, width: int, inside: int, heads: int, vocabulary: int) -> Shapes:
    """Names and shapes of an official TransNormerLLM checkpoint (read from its model code)."""
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, width)}
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes[at + "token_mixer.out_proj.weight"] = (width, width)
        shapes[at + "token_mixer.qkvu_proj.weight"] = (4 * width, width)
        if i == 0:
            shapes[at + "token_mixer.lrpe.theta"] = (heads, 1, width // heads)
        shapes[at + "channel_mixer.l1.weight"] = (inside, width)
        shapes[at + "channel_mixer.l2.weight"] = (inside, width)
        shapes[at + "channel_mixer.l3.weight"] = (width, inside)
    return {**shapes, "lm_head.weight": (vocabulary, width)}


def fla_shapes(layers: int, width: int, inside: int, heads: int, vocabulary: int, norm: str) -> Shapes:
    """Names and shapes of flash-linear-attention's GLA (listed from an instantiated model, version 0.6.0)."""
    shapes: Shapes = {"model.embeddings.weight": (vocabulary, width)}
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes[at + "attn_norm.weight"] = (width,)
        shapes |= {at + f"attn.{name}_proj.weight": (width // 2, width) for name in "qk"}
        shapes |= {at + f"attn.{name}_proj.weight": (width, width) for name in "vg"}
        shapes[at + "attn.gk_proj.0.weight"] = (16, width)
        shapes[at + "attn.gk_proj.1.weight"] = (width // 2, 16)
        shapes[at + "attn.gk_proj.1.bias"] = (width // 2,)
        shapes[at + "attn.o_proj.weight"] = (width, width)
        shapes[at + f"attn.{norm}.weight"] = (width // heads,)
        shapes[at + "mlp_norm.weight"] = (width,)
        shapes |= {at + f"mlp.{name}_proj.weight": (inside, width) for name in ("gate", "up")}
        shapes[at + "mlp.down_proj.weight"] = (width, inside)
    return {**shapes, "model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}


def first_code_shapes(layers: int, width: int, inside: int, vocabulary: int) -> Shapes:
    """Names and shapes of the paper's first GLA code (read from its model code)."""
    shapes: Shapes = {"transformer.wte.weight": (vocabulary, width)}
    for i in range(layers):
        at = f"transformer.h.{i}."
        shapes |= {at + f"ln_{n}.weight": (width,) for n in (1, 2)}
        shapes |= {at + f"attn.{name}_proj.weight": (width // 2, width) for name in "qk"}
        shapes[at + "attn.k_gate.0.weight"] = (16, width)
        shapes[at + "attn.k_gate.1.weight"] = (width // 2, 16)
        shapes[at + "attn.k_gate.1.bias"] = (width // 2,)
        shapes |= {at + f"attn.{name}_proj.weight": (width, width) for name in ("v", "g", "out")}
        shapes[at + "attn.g_proj.bias"] = (width,)
        shapes |= {at + f"{name}.weight": (inside, width) for name in ("w1", "w3")}
        shapes[at + "w2.weight"] = (width, inside)
    return {**shapes, "transformer.ln_f.weight": (width,), "lm_head.weight": (vocabulary, width)}


TRANSNORMER_7B = {
    "decoder_embed_dim": 4096,
    "decoder_layers": 30,
    "decoder_attention_heads": 32,
    "hidden_dim": 4096,
    "glu_dim": 11_008,
    "vocab_size": 64_000,
    "linear_use_lrpe_list": [1] + [0] * 29,
    "norm_type": "simplermsnorm",
    "linear_act_fun": "silu",
    "bias": False,
    "no_scale_embedding": False,
    "init_std": 0.02,
    "pad_token_id": 0,
}
FLA_340M = {"hidden_size": 1024, "num_hidden_layers": 24, "num_heads": 4, "expand_k": 0.5, "expand_v": 1.0}
FIRST_CODE_1B = {"d_model": 2048, "n_head": 4, "n_layer": 24, "vocab_size": 32_000, "use_gk": True, "use_gv": False}


def _first_code() -> tuple[Any, Shapes, Any]:
    made = GLAConfig(**convert.gla_config_from_first_code(FIRST_CODE_1B))
    return made, first_code_shapes(24, 2048, 5632, 32_000), partial(convert.gla_from_first_code, num_heads=4)


def _fla(norm: str) -> tuple[Any, Shapes, Any]:
    made = GLAConfig(**convert.gla_config_from_fla(FLA_340M))
    assert made == GLAConfig.from_preset("340M")
    return made, fla_shapes(24, 1024, 2816, 4, 32_000, norm), convert.gla_from_fla


def _official() -> tuple[Any, Shapes, Any]:
    made = TransNormerConfig(**convert.transnormer_config_from_official(TRANSNORMER_7B))
    assert made == TransNormerConfig.from_preset("7B", lrpe_layers=[0])
    return made, official_shapes(30, 4096, 11_008, 32, 64_000), convert.transnormer_from_official


CASES = {
    "official TransNormerLLM 7B": _official,
    "fla GLA 340M": lambda: _fla("g_norm_swish_gate"),
    "fla GLA 340M, norm not fused": lambda: _fla("g_norm"),
    "first code 1.3B": _first_code,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("is_tied", [False, True])
def test_every_name_and_shape_of_a_published_size_finds_its_place(case: str, is_tied: bool) -> None:
    """A tied model's, which is saved without its output projection, too."""
    made, shapes, converter = CASES[case]()
    if is_tied:
        made.tie_word_embeddings = True
        del shapes["lm_head.weight"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    converted = converter({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in converted.items()} == expected


def _drawn(shapes: Shapes) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) / 3 for name, shape in shapes.items()}


def test_official_rows_are_queries_keys_values_gate() -> None:
    """A tiny official checkpoint, run by the published forward pass, gives the same logits."""
    old = _drawn(official_shapes(2, 12, 20, 3, VOCAB))
    model = TransNormerForCausalLM(TransNormerConfig(**SIZES)).double()
    model.load_state_dict(convert.transnormer_from_official(old))
    rows = tokens(2, 7)
    x = 12**0.5 * old["model.embed_tokens.weight"][rows]
    slopes = torch.tensor([2.0**-4, 2.0**-8, 2.0**-2], dtype=x.dtype)
    for i in range(2):
        w = {name.split(".", 3)[3]: tensor for name, tensor in old.items() if f"layers.{i}." in name}
        q, k, v, u = F.linear(_rms(x), w["token_mixer.qkvu_proj.weight"]).chunk(4, -1)
        q, k, v = (t.unflatten(-1, (3, 4)) for t in (F.silu(q), F.silu(k), v))
        if i == 0:
            angles = torch.arange(7)[:, None, None] * w["token_mixer.lrpe.theta"].mT.squeeze(-1)
            q, k = (torch.cat([t * angles.cos(), t * angles.sin()], -1) for t in (q, k))
        log_decay = -slopes * (1 - i + 1e-5)
        out, _ = linear_attention_reference(q, k, v, log_decay=log_decay, scale=1.0)
        x = x + F.linear(u * _rms(out.flatten(-2)), w["token_mixer.out_proj.weight"])
        h = _rms(x)
        inside = F.linear(h, w["channel_mixer.l1.weight"]) * F.linear(h, w["channel_mixer.l2.weight"])
        x = x + F.linear(inside, w["channel_mixer.l3.weight"])
    torch.testing.assert_close(model(rows).logits, F.linear(_rms(x), old["lm_head.weight"]), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("revision", "scale"), [({}, 2**-0.5), ({"revision": "December 2023"}, 1.0)], ids=str)
def test_the_first_code_means_the_same_here(revision: dict[str, Any], scale: float) -> None:
    """Its keys are scaled by the value heads' width, its queries as in fla's kernels or not at all; W1 and W3 are gate
    and up."""
    old = _drawn(first_code_shapes(2, 12, 256, VOCAB))
    options = convert.gla_config_from_first_code({"d_model": 12, "n_head": 3, "n_layer": 2, "vocab_size": VOCAB})
    model = GLAForCausalLM(GLAConfig(**options)).double()
    model.load_state_dict(convert.gla_from_first_code(old, num_heads=3, **revision))
    rows = tokens(2, 7)
    x = old["transformer.wte.weight"][rows]
    for i in range(2):
        w = {name.split(".", 3)[3]: tensor for name, tensor in old.items() if f".h.{i}." in name}
        h = _rms(x, 1e-5) * w["ln_1.weight"]
        q, k, v = (F.linear(h, w[f"attn.{name}_proj.weight"]) for name in "qkv")
        gate = F.linear(F.linear(h, w["attn.k_gate.0.weight"]), w["attn.k_gate.1.weight"], w["attn.k_gate.1.bias"])
        q, k, g = (t.unflatten(-1, (3, 2)) for t in (q, k * 4**-0.5, F.logsigmoid(gate) / 16))
        out, _ = linear_attention_reference(q, k, v.unflatten(-1, (3, 4)), log_decay=g, scale=scale)
        out = F.layer_norm(out, (4,), eps=1e-5).flatten(-2)
        r = F.linear(h, w["attn.g_proj.weight"], w["attn.g_proj.bias"])
        x = x + F.linear(F.silu(r) * out, w["attn.out_proj.weight"])
        h = _rms(x, 1e-5) * w["ln_2.weight"]
        x = x + F.linear(F.silu(F.linear(h, w["w1.weight"])) * F.linear(h, w["w3.weight"]), w["w2.weight"])
    logits = F.linear(_rms(x, 1e-5) * old["transformer.ln_f.weight"], old["lm_head.weight"])
    torch.testing.assert_close(model(rows).logits, logits, rtol=1e-8, atol=1e-8)


def _rms(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def test_fla_names_lead_to_the_same_tensors() -> None:
    """Names only: written back into fla's layout, a model's weights convert to themselves, without a copy."""
    model = build("gla")
    back = {
        "model.embed_tokens": "model.embeddings",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "mlp_norm",
        "g_norm": "g_norm_swish_gate",
    }
    old = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in back.items():
            name = name.replace(ours, theirs)
        old[name] = tensor
    converted = convert.gla_from_fla(old)
    assert converted.keys() == model.state_dict().keys()
    assert all(converted[name].data_ptr() == tensor.data_ptr() for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("converter", "name"),
    [
        (convert.transnormer_from_official, "model.layers.0.token_mixer.qkvu_proj.bias"),
        (convert.gla_from_fla, "model.layers.0.attn.q_conv1d.weight"),
        (partial(convert.gla_from_first_code, num_heads=4), "transformer.h.0.attn.v_gate.0.weight"),
    ],
)
def test_unknown_names_are_refused(converter: Any, name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"{getattr(converter, 'func', converter).__name__}: 1 of 2 names .* the first is '{name}'"
    ):
        converter({name: torch.zeros(1), "lm_head.weight": torch.zeros(1)})


def test_the_first_code_has_two_revisions() -> None:
    weights = {"transformer.h.0.attn.k_proj.weight": torch.ones(4, 8)}
    with pytest.raises(ValueError, match="revision must be one of 'fla kernels', 'December 2023', got '2024'"):
        convert.gla_from_first_code(weights, num_heads=2, revision="2024")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("converter", "config", "option", "value"),
    [
        (convert.transnormer_config_from_official, TRANSNORMER_7B, "norm_type", "layernorm"),
        (convert.transnormer_config_from_official, TRANSNORMER_7B, "hidden_dim", 8192),
        (convert.gla_config_from_fla, FLA_340M, "use_short_conv", True),
        (convert.gla_config_from_fla, FLA_340M, "expand_k", 1.0),
        (convert.gla_config_from_first_code, FIRST_CODE_1B, "use_gv", True),
    ],
)
def test_options_without_counterpart_are_refused(
    converter: Any, config: dict[str, Any], option: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=f"{converter.__name__}: {option} must be .*, got {value!r}"):
        converter({**config, option: value})


def test_configurations_keep_what_differs_from_the_published_sizes() -> None:
    fla = convert.gla_config_from_fla({**FLA_340M, "num_kv_heads": 2, "intermediate_size": 7, "clamp_min": -1.0})
    assert (fla["num_key_value_heads"], fla["intermediate_size"], fla["clamp_min"]) == (2, 7, -1.0)
    official = convert.transnormer_config_from_official(
        {**TRANSNORMER_7B, "glu_dim": -1, "linear_use_lrpe_list": [], "no_scale_embedding": True}
    )
    assert (official["intermediate_size"], official["lrpe_layers"], official["scale_embedding"]) == (4096, [], False)
