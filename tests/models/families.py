"""Tiny language models in transformers' conventions: every family, every causal card of the catalogue, hybrids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attensor.catalogue import Domain, mechanisms
from attensor.models.language import import_families
from attensor.models.language._hf import CausalLM, SequenceClassifier
from attensor.models.language.deconstructed import DeconstructedConfig, DeconstructedForCausalLM
from attensor.models.language.gla import GLAConfig, GLAForCausalLM
from attensor.models.language.stack import StackConfig, StackForCausalLM
from attensor.models.language.transnormer import TransNormerConfig, TransNormerForCausalLM

import_families()

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
CAUSAL = [name for name, card in mechanisms().items() if card.is_causal and Domain.SEQUENCE in card.domain]
_FIRST_CODE = {
    "norm": "layer",
    "gate_bias": True,
    "num_key_value_heads": 1,
    "clamp_min": -0.04,
    "tie_word_embeddings": True,
}
_HYBRID = {
    "layers": ["softmax", "gla", "sliding-window"],  # what can be cropped before what cannot
    "num_hidden_layers": 4,
    "mixer_options": {"sliding-window": {"window_size": 3}, "3": {"num_kv_heads": 1}},
}


def _stack(card: str) -> tuple[type, type, dict[str, Any]]:
    options = {**mechanisms()[card].example_options, **({"window_size": 4} if card == "sliding-window" else {})}
    return StackConfig, StackForCausalLM, {"layers": [card], "mixer_options": {card: options}}


FAMILIES: dict[str, Any] = {
    family.config_class.model_type.removeprefix("attensor_"): (family.config_class, family, family.config_class.tiny)
    for family in CausalLM.__subclasses__()
    if family.__module__.startswith("attensor.")
}
CLASSIFIERS = [kind for kind in SequenceClassifier.__subclasses__() if kind.__module__.startswith("attensor.")]
VARIANTS: dict[str, Any] = {
    **FAMILIES,
    "gla-first-code": (GLAConfig, GLAForCausalLM, _FIRST_CODE),
    "transnormer-lrpe-everywhere": (TransNormerConfig, TransNormerForCausalLM, {"lrpe_layers": [0, 1]}),
    **{
        f"deconstructed-{variant}": (
            DeconstructedConfig,
            DeconstructedForCausalLM,
            {**DeconstructedConfig.tiny, "variant": variant},
        )
        for variant in ("no-mixing", "random-sequence", "static-embedding")
    },
    **{f"card-{name}": _stack(name) for name in CAUSAL},
    "hybrid": (StackConfig, StackForCausalLM, _HYBRID),
    "linear-normalised": (
        StackConfig,
        StackForCausalLM,
        {"layers": ["linear"], "mixer_options": {"linear": {"feature_map": "elu+1", "normalize": True}}},
    ),
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
            if parameter.dim() == 1 or name.endswith("relative_bias"):
                parameter.add_(torch.randn_like(parameter) / 3)
            elif name.endswith("theta"):
                parameter.add_(torch.rand_like(parameter) / 3)
    return model.eval()


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    """[batch, length], no padding token among them."""
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
