"""TransNormerLLM: lightning attention with decays by layer, an MLP without activation, norms without weights.

    h = sqrt(C) Emb(tokens)      x = x + TransNormerAttention(SRMSNorm(x))      x = x + SGLU(SRMSNorm(x))

Importing this module registers `"attensor_transnormer"` with `AutoConfig`, `AutoModel`, `AutoModelForCausalLM` and
`AutoModelForSequenceClassification`. Official checkpoints are read through `attensor.models.language.convert`.

Source: arXiv:2307.14995, section 3 and its table of model variants; the 15B model's published card.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from attensor.models.language._hf import CausalConfig, CausalLM, CausalModel, Family, SequenceClassifier, register
from attensor.models.language._transformers import GenerationMixin
from attensor.models.language.decoder import GatedMLP
from attensor.nn.transnormer import TransNormerAttention

__all__ = ["TransNormerConfig", "TransNormerForCausalLM", "TransNormerForSequenceClassification", "TransNormerModel"]


def _size(hidden_size: int, layers: int, intermediate_size: int, vocab_size: int = 64_000) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden_size // 128,
    }


class TransNormerConfig(CausalConfig):
    """Configuration of a TransNormerLLM; the defaults are the 385M model's.

    Parameters: L layers of 5 C^2 + 3 C * intermediate_size, two tables of vocab_size * C (one if tied), and C angles
    for each layer with LRPE; heads are 128 wide. Published totals count one table: the paper's four have 50,272
    tokens there (and a few thousandths of a per cent more for positions, then in every layer), the released models
    64,000. The MLP's width is not in that table; the presets' are the ones that give its totals. The 15B model's card
    says 14.83 billion parameters, 42 layers, 40 heads, 5,120 channels and about 100,000 tokens; here 100,280 tokens
    and 13,656 channels (8 / 3 of 5,120) give 14.83 billion. Its exact width was not published.

    Attributes:
        lrpe_layers: layers with learned relative positions; None: the first alone, as published.
        slopes: how fast heads forget, see `attensor.nn.lightning.decay_slopes`.
        scale_embedding: multiply embedded tokens by the root of hidden_size.
    """

    model_type = "attensor_transnormer"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "385M": _size(1024, 24, 2816),
        "0.4B": _size(1024, 24, 2816),
        "1B": _size(2048, 16, 5632),
        "3B": _size(2560, 32, 6912),
        "7B": _size(4096, 30, 11008),
        "15B": _size(5120, 42, 13656, vocab_size=100_280),
    }

    vocab_size: int = 64_000
    num_attention_heads: int = 8
    pad_token_id: int | None = 0
    lrpe_layers: list[int] | None = None
    slopes: Literal["alibi", "linear"] = "alibi"
    scale_embedding: bool = True

    @property
    def embedding_scale(self) -> float:
        """What embedded tokens are multiplied by."""
        return self.hidden_size**0.5 if self.scale_embedding else 1.0


def _mixer(config: TransNormerConfig, layer_index: int) -> nn.Module:
    return TransNormerAttention(
        config.hidden_size,
        config.num_attention_heads,
        layer_index=layer_index,
        num_layers=config.num_hidden_layers,
        use_lrpe=None if config.lrpe_layers is None else layer_index in config.lrpe_layers,
        slopes=config.slopes,
    )


def _mlp(config: TransNormerConfig) -> nn.Module:
    return GatedMLP(config.hidden_size, config.intermediate_size, activation=None)


def _norm(config: TransNormerConfig) -> nn.Module:
    return nn.RMSNorm(config.hidden_size, eps=config.norm_eps, elementwise_affine=False)


class TransNormerModel(CausalModel):
    """Embedding, TransNormer blocks and final norm, without output projection."""

    config_class = TransNormerConfig
    family = Family(mixer=_mixer, mlp=_mlp, norm=_norm)


class TransNormerForCausalLM(CausalLM, GenerationMixin):
    """A TransNormerLLM that predicts the next token.

    Its `presets` are the models as published totals count them: with one table, and the paper's vocabulary.
    """

    config_class = TransNormerConfig
    body = TransNormerModel
    presets: ClassVar[dict[str, CausalConfig]] = {
        f"transnormer_{name}": TransNormerConfig.from_preset(
            name, tie_word_embeddings=True, vocab_size=100_280 if name == "15B" else 50_272
        )
        for name in ("385M", "1B", "3B", "7B", "15B")
    }


class TransNormerForSequenceClassification(SequenceClassifier):
    """A TransNormerLLM that scores whole sequences."""

    config_class = TransNormerConfig


register(TransNormerConfig, TransNormerModel, TransNormerForCausalLM, TransNormerForSequenceClassification)
