"""Heads of transformers' Llama as a mixture: all are its attention, some its attention without the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attensor.models.language.stack import StackConfig, StackForCausalLM
from attensor.nn import AttentionWeights, MixtureOfHeads

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

B, T, C, H, KV, D = 2, 9, 24, 8, 4, 6
SIZES = {"hidden_size": C, "num_attention_heads": H, "num_key_value_heads": KV, "head_dim": D, "vocab_size": 31}


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SIZES, intermediate_size=16, num_hidden_layers=1, attention_bias=True, attn_implementation="sdpa", **options
    )
    return transformers.LlamaModel(config).double().eval()


def weights_of(theirs: Any) -> AttentionWeights:
    parts = {"q": theirs.q_proj, "k": theirs.k_proj, "v": theirs.v_proj, "out": theirs.o_proj}
    tensors = {name: layer.weight.detach() for name, layer in parts.items()}
    tensors |= {f"{name}_bias": layer.bias.detach() for name, layer in parts.items()}
    return AttentionWeights(**tensors, num_heads=H, num_kv_heads=KV, head_dim=D, rotary_base=10_000.0, is_causal=True)


def attention_of(model: Any, x: Tensor) -> Tensor:
    """With angles in float64; its own are in float32."""
    speed = 10_000.0 ** (-torch.arange(D // 2, dtype=torch.float64) / (D // 2))
    angles = (torch.arange(T)[:, None] * speed).repeat(1, 2)[None]
    out: Tensor = model.layers[0].self_attn(x, position_embeddings=(angles.cos(), angles.sin()), attention_mask=None)[0]
    return out


def test_all_heads_are_the_attention_it_was() -> None:
    model, x = llama(), torch.randn(B, T, C, dtype=torch.float64)
    for bias in (p for name, p in model.named_parameters() if name.endswith("bias")):
        torch.nn.init.normal_(bias)
    layer = MixtureOfHeads.from_attention(weights_of(model.layers[0].self_attn), num_active=H).eval()
    torch.testing.assert_close(layer(x), attention_of(model, x), rtol=1e-10, atol=1e-10)


def test_heads_that_are_off_say_nothing() -> None:
    """Token by token its attention, with the rows of the output projection of other heads set to zero."""
    model, x = llama(), torch.randn(B, T, C, dtype=torch.float64)
    theirs = model.layers[0].self_attn
    layer = MixtureOfHeads.from_attention(weights_of(theirs)).eval()
    assert (layer.num_shared, layer.num_active) == (4, 6)
    lengths = theirs.q_proj(x).unflatten(-1, (H, D)).norm(dim=-1)[..., 4:]
    best = lengths.topk(2, -1).indices + 4
    out, whole = layer(x), theirs.o_proj.weight.detach().clone()
    for b, t in ((b, t) for b in range(B) for t in range(T)):
        off = [h for h in range(4, H) if h not in best[b, t].tolist()]
        kept = whole.clone().view(C, H, D)
        kept[:, off] = 0
        theirs.o_proj.weight.data.copy_(kept.view(C, H * D))
        torch.testing.assert_close(out[b, t], attention_of(model, x)[b, t], rtol=1e-10, atol=1e-10)


def test_the_published_language_model_has_the_parameters_of_llama() -> None:
    """MoH-LLaMA3-8B, whose router has none: 16 shared heads and 8 of 16 others."""
    sizes = {"vocab_size": 160_896, "hidden_size": 4096, "num_hidden_layers": 32}
    heads = {"num_kv_heads": 8, "num_shared": 16, "num_active": 24, "router": "query-norm", "gate_scale": "hard"}
    config = StackConfig(
        **sizes, layers="moh", mixer_options={"moh": {**heads, "rotary_base": 500_000.0}}, num_attention_heads=32,
        intermediate_size=14_336, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        ours = StackForCausalLM(config)
        theirs = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **sizes, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14_336,
                tie_word_embeddings=False,
            )
        )  # fmt: skip
    found, expected = (sum(p.numel() for p in model.parameters()) for model in (ours, theirs))
    assert found == expected
