"""The body of `decoder.py` in transformers' conventions: one thin adapter for every family.

A family states its configuration and, as a `Family`, what its blocks are made of; embedding, blocks, padding and
packing are the body's, decode caches the mixers'. Here are loss, generation, files and names.

Sizes: B sequences, T tokens, C channels, V vocabulary. Keys of the state_dict: `model.embed_tokens`,
`model.layers.{i}.{input_layernorm, attn, post_attention_layernorm, mlp}`, `model.norm`, `lm_head`.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from attensor.models._registration import register_when_imported
from attensor.models.language._hf_cache import ModelCache, opened, settled
from attensor.models.language._packing import last_token_last, packed_boundaries
from attensor.models.language._transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BaseModelOutputWithPast,
    Cache,
    CausalLMOutputWithPast,
    GenerationMixin,
    GenericForSequenceClassification,
    GradientCheckpointingLayer,
    PreTrainedConfig,
    PreTrainedModel,
    can_return_tuple,
)
from attensor.models.language.decoder import Body, DecoderLayer, Family
from attensor.nn._shapes import check_range
from attensor.ops._kinds import kinds_of_fields, refuse

__all__ = [
    "CausalConfig",
    "CausalLM",
    "CausalLayer",
    "CausalModel",
    "CausalPreTrainedModel",
    "Family",
    "SequenceClassifier",
    "register",
]


_TINY = {
    "vocab_size": 13,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "pad_token_id": 0,
}


class CausalConfig(PreTrainedConfig):
    """Sizes that every family has.

    `num_heads`, `num_kv_heads` and `num_layers` are other names of three of these, `mlp_hidden_size` of one.

    Attributes:
        vocab_size: tokens that exist, V.
        hidden_size: channels C.
        intermediate_size: channels inside the MLP.
        num_hidden_layers: blocks.
        num_attention_heads: query heads of a mixer.
        norm_eps: added to the mean square in the norms.
        initializer_range: standard deviation of freshly drawn weights.
        use_cache: return decode states by default, outside training.
        tie_word_embeddings: the output projection is the embedding table.
    """

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "num_layers": "num_hidden_layers",
        "mlp_hidden_size": "intermediate_size",
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    tiny: ClassVar[dict[str, Any]] = {}  # what a model for tests needs besides small sizes

    vocab_size: int = 32000
    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    norm_eps: float = 1e-6
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False

    def __post_init__(self, **others: Any) -> None:
        """Refuse what no model can be built of; transformers looks at its own fields alone.

        Raises:
            TypeError, ValueError: a field of another kind than annotated, or a number out of its range.
        """
        super().__post_init__(**others)
        own = kinds_of_fields(type(self), CausalConfig)  # type: ignore[arg-type]  # objects have no hash, classes have
        for field, kind in own.items():
            value = getattr(self, field)
            if not (type(value) in kind.sure or kind.accepts(value)):
                refuse(type(self).__name__, field, value, kind)
        check_range(self, 1, vocab_size=self.vocab_size, hidden_size=self.hidden_size)
        check_range(self, 1, intermediate_size=self.intermediate_size, num_hidden_layers=self.num_hidden_layers)
        check_range(self, 1, num_attention_heads=self.num_attention_heads)
        check_range(self, above=0, norm_eps=self.norm_eps)
        check_range(self, 0, initializer_range=self.initializer_range)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """The configuration of a published size.

        Args:
            name: a key of `presets`.
            overrides: fields to set differently.
        Raises:
            ValueError: no such preset.
        """
        if name not in cls.presets:
            raise ValueError(f"{cls.__name__}: preset must be one of {', '.join(cls.presets)}, got {name!r}.")
        return cls(**{**copy.deepcopy(cls.presets[name]), **overrides})

    @property
    def embedding_scale(self) -> float:
        """What embedded tokens are multiplied by."""
        return 1.0


class CausalLayer(GradientCheckpointingLayer, DecoderLayer):
    """A block of the body that can be checkpointed."""


class CausalPreTrainedModel(PreTrainedModel):
    """What transformers asks of a model before it has weights."""

    config: CausalConfig
    config_class = CausalConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["CausalLayer"]  # noqa: RUF012 (transformers' own declaration)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        # what is in no linear, embedding or norm: angles, biases of offsets, random features
        reset = getattr(module, "reset_own_parameters", None)
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if reset is not None and not (own and all(getattr(t, "_is_hf_initialized", False) for t in own)):
            reset()

    def new_cache(self, max_length: int | None = None) -> ModelCache:
        """Empty decode states, for `past_key_values`; their batch size is that of the first tokens.

        Args:
            max_length: tokens in all, padding included, for states of fixed size (transformers' static caches): after
                the prompt, a compiled step is one graph for every length. None: states that grow.
        Raises:
            ValueError: max_length below 1.
        """
        return ModelCache(self.config.num_hidden_layers, max_length)


class CausalModel(CausalPreTrainedModel, Body):
    """Embedding, blocks and final norm.

    Args:
        config: sizes. A subclass sets `family`, which says what the blocks are made of.
    """

    family: ClassVar[Family]

    def __init__(self, config: CausalConfig) -> None:
        super().__init__(config)
        self.assemble(config, self.family, layer=CausalLayer, pad_token_id=config.pad_token_id)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        cu_seqlens: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of every token.

        Args:
            input_ids, inputs_embeds: [B, T], or [B, T, C], rows of the embedding table.
            attention_mask: see `Body.run`; padding anywhere.
            past_key_values: from `new_cache` or an earlier call; the tokens continue it.
            use_cache: return decode states; None: as configured, but not in training.
            output_hidden_states: return the input of every block and the output too.
            cu_seqlens: [N + 1], boundaries of sequences packed into one row (B = 1); no cache is kept then.
            kwargs: other names of `cu_seqlens`, see `packed_boundaries`; the rest is ignored.
        Raises:
            ShapeError, TypeError: input_ids are not [B, T] integers.
            ValueError: not one of input_ids and inputs_embeds; tokens that the model does not have; a cache while
                checkpointing; see `_padding.arrange`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(f"{type(self).__name__}: give exactly one of input_ids and inputs_embeds.")
        hidden_states = self.embedded(input_ids, "input_ids") if inputs_embeds is None else inputs_embeds
        cu_seqlens = packed_boundaries(attention_mask, cu_seqlens=cu_seqlens, **kwargs)
        cache = self._cache(past_key_values, use_cache, is_packed=cu_seqlens is not None)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        seen: list[Tensor] | None = [] if wanted else None
        hidden_states = hidden_states * self.config.embedding_scale
        caches = None if cache is None else opened(cache, [layer.attn for layer in self.layers], hidden_states)
        given = {"attention_mask": attention_mask, "cu_seqlens": cu_seqlens}
        hidden_states = self.run(hidden_states, caches=caches, seen=seen, **given)
        settled(cache)
        states = None if seen is None else (*seen, hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=cache, hidden_states=states)

    def _cache(self, past_key_values: Cache | None, use_cache: bool | None, *, is_packed: bool) -> Cache | None:
        checkpointing = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        if past_key_values is not None:
            if checkpointing:
                raise ValueError(
                    f"{type(self).__name__}: gradient checkpointing would run the layers twice over past_key_values; "
                    "leave it out, or switch checkpointing off."
                )
            return past_key_values
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and not is_packed
        return self.new_cache() if use_cache and not checkpointing else None


class CausalLM(CausalPreTrainedModel, GenerationMixin):
    """A `CausalModel` with an output projection, a loss and `generate`.

    Args:
        config: sizes. A subclass sets `body`, the class of the model below, and names `GenerationMixin` among its own
            bases, where transformers looks for it.
    """

    body: ClassVar[type[CausalModel]]
    presets: ClassVar[dict[str, CausalConfig]] = {}  # of a card; a subclass may state its own
    tiny: ClassVar[CausalConfig]
    _tied_weights_keys: ClassVar[dict[str, str]] = {  # type: ignore[misc]
        "lm_head.weight": "model.embed_tokens.weight"
    }

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        kind = cls.config_class
        family = kind.model_type.removeprefix("attensor_")
        if "presets" not in cls.__dict__:
            cls.presets = {f"{family}_{name}": kind.from_preset(name) for name in kind.presets}
        cls.tiny = kind(**{**_TINY, **kind.tiny})

    def __init__(self, config: CausalConfig) -> None:
        super().__init__(config)
        self.model = self.body(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=self.body.family.head_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the token after each token, and the loss where labels are given.

        Args:
            input_ids, attention_mask, past_key_values, inputs_embeds, use_cache: see `CausalModel.forward`.
            labels: [B, T], the tokens themselves (they are shifted here); -100 is left out of the mean.
            logits_to_keep: logits of that many last tokens only (0: all), or of the places in this tensor.
            kwargs: further arguments of `CausalModel.forward`; `num_items_in_batch` for the loss.
        Returns:
            loss, logits [B, tokens kept, V], past_key_values, hidden_states.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        kept = logits_to_keep if isinstance(logits_to_keep, Tensor) else slice(-logits_to_keep, None)
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)  # whose arguments `generate` looks at
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What a step of `generate` calls the model with; rows that end in padding are moved to the right."""
        return last_token_last(super().prepare_inputs_for_generation(*args, **kwargs))  # type: ignore[misc]

    @property
    def _is_stateful(self) -> bool:  # type: ignore[override]
        """Whether a layer cannot take tokens back; then there is no assisted generation."""
        return not all(layer.attn.new_cache(1, device="meta").can_crop for layer in self.model.layers)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the cache is ours, see below

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any
    ) -> None:
        has_own = model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False
        if generation_config.cache_implementation == "static" and not has_own:
            room = max(args[-1], generation_config.max_cache_len or 0)
            model_kwargs["past_key_values"] = self.new_cache(room)
            return
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)  # type: ignore[misc]
        if generation_config.use_cache is not False:
            model_kwargs.setdefault("past_key_values", self.new_cache())

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None, inputs_embeds: Tensor, **kwargs: Any) -> Tensor | None:
        """The mask of the new tokens of a step with a static cache; none where all are real.

        What the cache holds of padding it knows itself, and a mask of all tokens would be another one at each step.
        """
        if attention_mask is None:
            return None
        new = attention_mask[:, attention_mask.shape[1] - inputs_embeds.shape[1] :]
        return None if new.all() else new


class SequenceClassifier(GenericForSequenceClassification, CausalPreTrainedModel):
    """A `CausalModel` with `num_labels` scores of each sequence, read at its last token that is not padding.

    A subclass sets `config_class`; the Auto classes know which model it has.
    """


def register(
    config: type[CausalConfig],
    model: type[CausalModel],
    causal_lm: type[CausalLM],
    classifier: type[SequenceClassifier],
) -> None:
    """Let transformers' Auto classes find a family; again is harmless."""
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForCausalLM.register(config, causal_lm, exist_ok=True)
    AutoModelForSequenceClassification.register(config, classifier, exist_ok=True)


register_when_imported()  # who imports one family has all
