"""Small models of every library that sites are found in, in float64, each with an input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.oracles.timm import load_timm


@dataclass(frozen=True)
class Case:
    """A model, how it is called, and what a replacement needs to know."""

    model: nn.Module
    call: Callable[[], Tensor]
    kind: str
    count: int
    options: dict[str, Any]


def drawn(model: nn.Module) -> nn.Module:
    """Every parameter from a normal distribution: no zero bias, no unit norm hides a fault."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.ndim == 1) * 0.5)
    return model.double().eval()


SIZES = {"vocab_size": 31, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2}
TOKENS = torch.randint(1, 31, (2, 7), generator=torch.Generator().manual_seed(1))


def llama(**options: Any) -> Case:
    transformers = pytest.importorskip("transformers")
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True}
    config = transformers.LlamaConfig(**SIZES, **sizes, **options)
    model = drawn(transformers.LlamaForCausalLM(config))
    return Case(model, lambda: model(TOKENS).logits, "transformers", 2, {})


def qwen2(**options: Any) -> Case:
    transformers = pytest.importorskip("transformers")
    sizes = {"num_attention_heads": 3, "num_key_value_heads": 1}
    model = drawn(transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES, **sizes, **options)))
    return Case(model, lambda: model(TOKENS).logits, "transformers", 2, {})


def mistral(**options: Any) -> Case:
    transformers = pytest.importorskip("transformers")
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
    config = transformers.MistralConfig(**SIZES, **sizes, **options)
    model = drawn(transformers.MistralForCausalLM(config))
    return Case(model, lambda: model(TOKENS).logits, "transformers", 2, {})


def gpt2() -> Case:
    transformers = pytest.importorskip("transformers")
    model = drawn(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=31, n_embd=24, n_layer=2, n_head=3, bos_token_id=1, eos_token_id=1)
        )
    )
    return Case(model, lambda: model(TOKENS).logits, "transformers", 2, {})


def bert() -> Case:
    transformers = pytest.importorskip("transformers")
    model = drawn(transformers.BertModel(transformers.BertConfig(**SIZES, num_attention_heads=3)))
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7])
    # what stands at padding is of no use to anyone: transformers lets it look at real tokens, layers do not
    return Case(
        model, lambda: model(TOKENS, attention_mask=mask).last_hidden_state * mask[..., None], "transformers", 2, {}
    )


def vit() -> Case:
    timm = load_timm()
    with torch.random.fork_rng():
        model = timm.models.VisionTransformer(
            img_size=(16, 24), patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
        )
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = drawn(model)
    return Case(model, lambda: model(images), "timm", 2, {})


def encoder() -> Case:
    layer = nn.TransformerEncoderLayer(24, 3, 20, dropout=0.0, batch_first=True, norm_first=True)
    model = drawn(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    x = torch.randn(2, 7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return Case(model, lambda: model(x), "torch", 2, {})


def ours() -> Case:
    from attensor.models.language.stack import StackConfig, StackForCausalLM

    model = drawn(StackForCausalLM(StackConfig(layers="softmax", **SIZES, num_attention_heads=3)))
    return Case(model, lambda: model(TOKENS).logits, "attensor", 2, {})


def our_vit() -> Case:
    from attensor.models.vision.vit import VisionTransformer

    model = drawn(VisionTransformer(VisionTransformer.tiny))
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return Case(model, lambda: model(images), "attensor", 2, {})


CASES: dict[str, Callable[[], Case]] = {
    one.__name__: one for one in (llama, qwen2, mistral, gpt2, bert, vit, encoder, ours, our_vit)
}
