"""Attention taken apart: a Qwen2-style model whose layers give up one principle of attention each.

    x = x + mixer(RMSNorm(x))        x = x + SwiGLU(RMSNorm(x))        mixer: biases on queries, keys and values

Importing this module registers `"attensor_deconstructed"` with `AutoConfig`, `AutoModel`, `AutoModelForCausalLM` and
`AutoModelForSequenceClassification`. Weights are named as Qwen2's, the mixer being `attn`.

Source: arXiv:2510.11602, section 3 and tables 1 and 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from attensor.models.language._hf import CausalConfig, CausalLM, CausalModel, Family, SequenceClassifier, register
from attensor.models.language._transformers import GenerationMixin
from attensor.models.language.side_stream import BesideAttention, SideStream
from attensor.nn import Cache
from attensor.nn.key_scored import KeyScoredAttention
from attensor.nn.no_mixing import NoMixing
from attensor.nn.rotary import token_positions
from attensor.nn.softmax_attention import SoftmaxAttention
from attensor.nn.taylor_attention import TaylorAttention

__all__ = [
    "LAYOUTS",
    "DeconstructedConfig",
    "DeconstructedForCausalLM",
    "DeconstructedForSequenceClassification",
    "DeconstructedModel",
    "NoMixing",
]

# number of a layer from 0, layers -> whether it is a standard one; names as the paper's
LAYOUTS: dict[str, Any] = {
    "uniform": lambda layer, layers: False,
    "hybrid": lambda layer, layers: layer % 2 == 1,
    "skip": lambda layer, layers: True,
    "odd": lambda layer, layers: layer % 2 == 0,
    "top": lambda layer, layers: layer < layers // 2,
    "middle": lambda layer, layers: not layers // 4 <= layer < layers - layers // 4,
    "bottom": lambda layer, layers: layer >= layers // 2,
    "quarter": lambda layer, layers: layer % 4 == 3,
    "first": lambda layer, layers: layer == 0,
    "last": lambda layer, layers: layer == layers - 1,
    "bilateral": lambda layer, layers: layer in (0, layers - 1),
}


def _size(hidden_size: int, intermediate_size: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


class DeconstructedConfig(CausalConfig):
    """Configuration; the defaults are the 500M model's, all of its layers standard.

    The paper's sizes are 77, 190 and 481 million parameters, untied, with 50,304 tokens, as Qwen2 but for full heads;
    the largest, 1,733 million, is as Qwen3: norms of queries and keys, no biases.

    Attributes:
        variant: what the layers that are not standard have: `"no-mixing"` (MLP), `"taylor"` (Approximate),
            `"key-scored"` (Non-approximate), or softmax attention whose queries and keys are made of a
            `"random-sequence"` or `"fixed-sequence"` that runs beside the tokens (RndEmbQK, FixedSeqQK), or of the
            `"static-embedding"` of the tokens (StaticEmbQK).
        layout: which layers are standard: none (`"uniform"`), every second (`"hybrid"`), see `LAYOUTS` for the paper's
            others; `"skip"`: all, the blocks that a hybrid keeps when those of its variant are taken out, which
            `DeconstructedForCausalLM.skipped` does. A preset has half the layers then.
        stream_length: tokens of the sequence beside; longer inputs are refused.
        fixed_tokens: the sequence of `"fixed-sequence"`, of stream_length tokens; drawn at random if None, and saved
            with the weights either way.
        rotary_base: of the rotary positions of softmax attention.
        qkv_bias, qk_norm: of all mixers, see `nn.SoftmaxAttention`; without mixing, of three matrices, and no norm.
        mixer_options: further arguments of the variant's layers, such as `{"second_order": "full"}`.
    """

    model_type = "attensor_deconstructed"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "70M": _size(512, 2048, 6, 8),
        "160M": _size(768, 3072, 12, 12),
        "500M": _size(896, 4864, 24, 14),
        "1.7B": {**_size(2048, 6144, 28, 16), "qkv_bias": False, "qk_norm": True, "rotary_base": 1_000_000.0},
    }
    tiny: ClassVar[dict[str, Any]] = {"variant": "fixed-sequence", "layout": "hybrid", "stream_length": 128}

    vocab_size: int = 50_304
    hidden_size: int = 896
    intermediate_size: int = 4864
    num_hidden_layers: int = 24
    num_attention_heads: int = 14
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 0
    variant: str = "standard"
    layout: str = "uniform"
    stream_length: int = 2048
    fixed_tokens: list[int] | None = None
    rotary_base: float = 10_000.0
    qkv_bias: bool = True
    qk_norm: bool = False
    mixer_options: dict[str, Any] | None = None

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """The configuration of a published size, see `CausalConfig.from_preset`."""
        config = super().from_preset(name, **overrides)
        if config.layout == "skip" and "num_hidden_layers" not in overrides:
            config.num_hidden_layers //= 2
        return config

    @property
    def kinds(self) -> list[str]:
        """Of every layer: `"standard"` or the variant.

        Raises:
            ValueError: an unknown variant or layout, or fixed tokens that are no sequence of the stream's length.
        """
        for field, known in (("variant", _MIXERS), ("layout", LAYOUTS)):
            if (given := getattr(self, field)) not in known:
                raise ValueError(
                    f"DeconstructedConfig: {field} must be one of {', '.join(map(repr, known))}, got {given!r}."
                )
        if self.fixed_tokens is not None and len(self.fixed_tokens) != self.stream_length:
            raise ValueError(
                f"DeconstructedConfig: fixed_tokens must be {self.stream_length} tokens, as stream_length is, got "
                f"{len(self.fixed_tokens)}; change one of them."
            )
        is_standard, layers = LAYOUTS[self.layout], self.num_hidden_layers
        return ["standard" if is_standard(layer, layers) else self.variant for layer in range(layers)]


def _made(kind: type[nn.Module], config: DeconstructedConfig, **options: Any) -> nn.Module:
    sizes = config.hidden_size, config.num_attention_heads
    return kind(*sizes, **{"qkv_bias": config.qkv_bias, "qk_norm": config.qk_norm, **options})


def _softmax(config: DeconstructedConfig, *, kind: type[nn.Module] = SoftmaxAttention, **options: Any) -> nn.Module:
    return _made(kind, config, **{"rotary_base": config.rotary_base, **options})


_MIXERS: dict[str, Any] = {
    "standard": _softmax,
    "no-mixing": lambda c, **options: NoMixing(c.hidden_size, **{"bias": c.qkv_bias, **options}),
    "taylor": partial(_made, TaylorAttention),
    "key-scored": partial(_made, KeyScoredAttention),
    **dict.fromkeys(("random-sequence", "fixed-sequence"), partial(_softmax, kind=BesideAttention)),
    "static-embedding": _softmax,
}


def _mixer(config: DeconstructedConfig, layer_index: int) -> nn.Module:
    kind = config.kinds[layer_index]
    mixer: nn.Module = _MIXERS[kind](config, **((config.mixer_options or {}) if kind != "standard" else {}))
    return mixer


class DeconstructedModel(CausalModel):
    """Embedding, blocks and final norm, without output projection; the sequence beside is `side_stream`."""

    config_class = DeconstructedConfig
    family = Family(_mixer)

    def assemble(self, config: Any, family: Family, **options: Any) -> None:
        """Make the parts."""
        super().assemble(config, family, **options)
        self.side_stream = None
        if config.variant in ("random-sequence", "fixed-sequence") and config.variant in config.kinds:
            self.side_stream = SideStream(config)

    def beside(
        self, hidden_states: Tensor, caches: Sequence[Cache] | None, cu_seqlens: Tensor | None
    ) -> Mapping[int, dict[str, Tensor]]:
        """Number of a layer -> what its queries and keys are made of."""
        layers = [index for index, kind in enumerate(self.config.kinds) if kind == self.config.variant]
        if self.config.variant == "static-embedding":
            return {index: {"qk_source": hidden_states} for index in layers}
        if self.side_stream is None:
            return {}
        past = None if not caches else caches[0]
        is_padded = past is not None and past.real(0, 1) is not None
        positions = token_positions(
            hidden_states.shape[1],
            offset=0 if past is None else past.length,
            first=past.first if past is not None and is_padded else None,
            cu_seqlens=cu_seqlens,
            device=hidden_states.device,
        )
        streams = self.side_stream(self, positions, layers[-1] + 1)
        found = {index: {"qk_source": _at(streams[index], positions)} for index in layers}
        if past is not None:
            for index, options in found.items():
                options["stream"] = streams[index]
        return found


def _at(stream: Tensor, positions: Tensor) -> Tensor:
    """[tokens, C] at positions [T] or [B, T]: [1 or B, T, C]."""
    found = stream[positions]
    return found if found.dim() == 3 else found[None]


class DeconstructedForCausalLM(CausalLM, GenerationMixin):
    """A model of attention taken apart that predicts the next token."""

    config_class = DeconstructedConfig
    body = DeconstructedModel

    def skipped(self) -> DeconstructedForCausalLM:
        """A model of the standard blocks alone, those of the variant taken out whole, sharing this model's weights.

        Raises:
            ValueError: no block is standard.
        """
        kept = [index for index, kind in enumerate(self.config.kinds) if kind == "standard"]
        if not kept:
            raise ValueError(
                "DeconstructedForCausalLM.skipped: layout must keep standard blocks, got "
                f"{self.config.layout!r} of {self.config.variant!r}; train a hybrid."
            )
        settings = {**self.config.to_dict(), "layout": "skip", "num_hidden_layers": len(kept)}
        with torch.device("meta"):
            model = type(self)(type(self.config)(**settings))
        model.model.embed_tokens, model.model.norm, model.lm_head = (
            self.model.embed_tokens,
            self.model.norm,
            self.lm_head,
        )
        model.model.layers = nn.ModuleList(self.model.layers[index] for index in kept)
        model.train(self.training)
        return model


class DeconstructedForSequenceClassification(SequenceClassifier):
    """A model of attention taken apart that scores whole sequences."""

    config_class = DeconstructedConfig


register(DeconstructedConfig, DeconstructedModel, DeconstructedForCausalLM, DeconstructedForSequenceClassification)
