"""The GLA Transformer: gated linear attention and SwiGLU, for transformers' Auto classes.

    x = x + GLA(RMSNorm(x))        x = x + SwiGLU(RMSNorm(x))

Importing this module registers `"attensor_gla"` with `AutoConfig`, `AutoModel`, `AutoModelForCausalLM` and
`AutoModelForSequenceClassification`. Checkpoints of other projects are read through `attensor.models.language.convert`.

Source: arXiv:2312.06635, section 4.4 and table 1; sizes of the released 340M and 1.3B models.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from attensor.models.language._hf import CausalConfig, CausalLM, CausalModel, Family, SequenceClassifier, register
from attensor.models.language._transformers import GenerationMixin
from attensor.nn.gated_linear import GatedLinearAttention

__all__ = ["GLAConfig", "GLAForCausalLM", "GLAForSequenceClassification", "GLAModel"]


class GLAConfig(CausalConfig):
    """Configuration of a GLA Transformer; the defaults are the 340M model's.

    `GLAConfig.from_preset("340M")` has 374,475,776 parameters and `"1.3B"` 1,365,514,240 (untied, vocabulary 32,000).

    Attributes:
        num_key_value_heads: heads of keys, gates and values; as many as query heads if None.
        norm: of each head's output, `"rms"` with a weight (flash-linear-attention) or `"layer"` without (first code).
        gate_bias: the output gate's projection has a bias (first code).
        clamp_min: log decays below this are raised to it.
    """

    model_type = "attensor_gla"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "340M": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 4},
        "1.3B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 4},
    }

    num_key_value_heads: int | None = None
    norm: Literal["rms", "layer"] = "rms"
    gate_bias: bool = False
    clamp_min: float | None = None


def _mixer(config: GLAConfig, layer_index: int) -> nn.Module:
    mixer = GatedLinearAttention(
        config.hidden_size,
        config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        norm=config.norm,
        gate_bias=config.gate_bias,
        clamp_min=config.clamp_min,
    )
    mixer.g_norm.eps = config.norm_eps
    return mixer


class GLAModel(CausalModel):
    """Embedding, GLA blocks and final norm, without output projection."""

    config_class = GLAConfig
    family = Family(_mixer)


class GLAForCausalLM(CausalLM, GenerationMixin):
    """A GLA Transformer that predicts the next token."""

    config_class = GLAConfig
    body = GLAModel


class GLAForSequenceClassification(SequenceClassifier):
    """A GLA Transformer that scores whole sequences."""

    config_class = GLAConfig


register(GLAConfig, GLAModel, GLAForCausalLM, GLAForSequenceClassification)
