"""Tiny language models in transformers' conventions, one for each family and variant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attensor.models.language.gla import GLAConfig, GLAForCausalLM
from attensor.models.language.transnormer import TransNormerConfig, TransNormerForCausalLM

VOCAB = 13
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # logits far apart: greedy choices do not hang on rounding
}
VARIANTS: dict[str, Any] = {
    "gla": (GLAConfig, GLAForCausalLM, {}),
    "gla-first-code": (
        GLAConfig,
        GLAForCausalLM,
        {"norm": "layer", "gate_bias": True, "num_key_value_heads": 1, "clamp_min": -0.04, "tie_word_embeddings": True},
    ),
    "transnormer": (TransNormerConfig, TransNormerForCausalLM, {}),
    "transnormer-lrpe-everywhere": (TransNormerConfig, TransNormerForCausalLM, {"lrpe_layers": [0, 1]}),
}


def config(variant: str, **overrides: Any) -> Any:
    kind, _, options = VARIANTS[variant]
    return kind(**{**SIZES, **options, **overrides})


def build(variant: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **overrides: Any) -> Any:
    """A model whose every parameter is drawn at random, biases and norms included."""
    torch.manual_seed(seed)
    model = VARIANTS[variant][1](config(variant, **overrides)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) / 3)
            elif name.endswith("theta"):
                parameter.add_(torch.rand_like(parameter) / 3)
    return model.eval()


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    """[batch, length], no padding token among them."""
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
