"""A language model of any causal mechanisms of the catalogue, layer by layer, for transformers' Auto classes.

    StackConfig(layers=["gla", "gla", "softmax"], num_hidden_layers=6)      gla gla softmax gla gla softmax

Importing this module registers `"attensor_stack"` with `AutoConfig`, `AutoModel`, `AutoModelForCausalLM` and
`AutoModelForSequenceClassification`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from attensor import catalogue
from attensor.models.language._hf import CausalConfig, CausalLM, CausalModel, Family, SequenceClassifier, register
from attensor.models.language._transformers import GenerationMixin
from attensor.models.language.deepseek import PRESETS

__all__ = ["StackConfig", "StackForCausalLM", "StackForSequenceClassification", "StackModel"]


class StackConfig(CausalConfig):
    """Which mechanism each layer has; RMSNorm before it and SwiGLU after it.

    Presets have the attention of DeepSeek-V2-Lite, V2, V3 and of Kimi K2, and no experts, see `deepseek.py`.

    Attributes:
        layers: names from `attensor list`, or a text such as `"3*gla+softmax"`; repeated from the start until every
            layer has one.
        mixer_options: name of a mechanism, or the number of a layer as text, -> keyword arguments of its mixers; they
            come on top of the card's own, those of a layer on top of those of a mechanism.
    """

    model_type = "attensor_stack"
    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    tiny: ClassVar[dict[str, Any]] = {"layers": ["gla", "softmax"]}

    layers: str | list[str] = "softmax"
    mixer_options: dict[str, Any] | None = None

    @property
    def mechanisms(self) -> list[str]:
        """The name of every layer's mechanism.

        Raises:
            ValueError: no mechanism or more than layers, or options for a mechanism or layer that is not there.
        """
        names = catalogue.parse_stack(self.layers) if isinstance(self.layers, str) else self.layers
        count = self.num_hidden_layers
        if not 0 < len(names) <= count:
            raise ValueError(
                f"StackConfig: layers has {len(names)} mechanisms, but num_hidden_layers is {count}; name 1 to {count}."
            )
        every = [names[index % len(names)] for index in range(count)]
        unknown = sorted({*(self.mixer_options or {})} - {*every} - {str(index) for index in range(count)})
        if unknown:
            raise ValueError(
                f"StackConfig: mixer_options has {', '.join(unknown)}, which is neither a mechanism of the stack "
                f"({', '.join(dict.fromkeys(every))}) nor a layer from 0 to {count - 1}."
            )
        return every


def _mixer(config: StackConfig, layer_index: int) -> nn.Module:
    name, given = config.mechanisms[layer_index], config.mixer_options or {}
    card = catalogue.mechanism(name)
    if not card.is_causal or catalogue.Domain.SEQUENCE not in card.domain:
        raise ValueError(f"StackConfig: {name!r} is no causal mechanism of sequences; see `attensor show {name}`.")
    options = card.mixer_options(catalogue.Domain.SEQUENCE)
    return catalogue.build_mixer(
        catalogue.load(card.layer),
        config.hidden_size,
        config.num_attention_heads,
        layer_index=layer_index,
        num_layers=config.num_hidden_layers,
        **{**options, **given.get(name, {}), **given.get(str(layer_index), {})},
    )


class StackModel(CausalModel):
    """Embedding, blocks and final norm, without output projection."""

    config_class = StackConfig
    family = Family(_mixer)


class StackForCausalLM(CausalLM, GenerationMixin):
    """A stack that predicts the next token."""

    config_class = StackConfig
    body = StackModel


class StackForSequenceClassification(SequenceClassifier):
    """A stack that scores whole sequences."""

    config_class = StackConfig


register(StackConfig, StackModel, StackForCausalLM, StackForSequenceClassification)
