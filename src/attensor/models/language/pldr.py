r"""PLDR-LLM: power-law graph attention between norms that follow their branches, for transformers' Auto classes.

    x = norm(sqrt(C) Emb(tokens))      x = norm(x + attention(x))      x = norm(x + SwiGLU(x))      logits = head(x)

Importing this module registers `"attensor_pldr"` with `AutoConfig`, `AutoModel`, `AutoModelForCausalLM` and
`AutoModelForSequenceClassification`. Released checkpoints are read through `attensor.models.language.convert`.

Source: arXiv:2502.13502, sections 2 and 3, and its code; arXiv:2410.16703 for the loss of directed acyclic graphs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from attensor.models.language._hf import (
    CausalConfig,
    CausalLM,
    CausalModel,
    CausalPreTrainedModel,
    Family,
    SequenceClassifier,
    register,
)
from attensor.models.language._transformers import CausalLMOutputWithPast, GenerationMixin, can_return_tuple
from attensor.models.language.decoder import GatedMLP, post_norm
from attensor.nn.power_law_graph import DeductiveOutputs, PowerLawGraphAttention
from attensor.ops._checks import checked

__all__ = [
    "PLDRConfig",
    "PLDRForCausalLM",
    "PLDRForSequenceClassification",
    "PLDRModel",
    "dag_loss",
    "deductive_outputs",
    "fix_operators",
    "given_operators",
]


class PLDRConfig(CausalConfig):
    """Configuration of a PLDR-LLM; the defaults are the sizes of v51-110M, whose operator is causal.

    The released models were trained with `operator="sequence"`, which sees the whole block that it is trained on.
    "v51-110M" has 109,689,362 parameters, "v51G-106M" (a predefined operator) 105,606,482.

    Attributes:
        operator, custom, units, depth, net_size, block_size, interleaved: see `nn.PowerLawGraphAttention`;
            `custom="external"` is a fixed operator that the weights bring, identity before.
        cache_first_operator: caches keep the operator of a batch's first row for all, as the port's `cache_first_G`;
            with `operator="sequence"`. Contrastive search needs it there; here caches reorder operators with rows.
        dag_coefficients: of the three terms of `dag_loss` in a training loss; None leaves it out.
    """

    model_type = "attensor_pldr"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "v51-110M": {},
        "v51G-106M": {"operator": "fixed", "custom": "external"},
        "v52": {"interleaved": False},
        "DAG": {"dag_coefficients": [0.05, 0.05, 0.05]},
    }
    tiny: ClassVar[dict[str, Any]] = {"units": 2, "depth": 2, "net_size": 6, "block_size": 3}

    hidden_size: int = 896
    intermediate_size: int = 2389
    num_hidden_layers: int = 5
    num_attention_heads: int = 14
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3
    operator: Literal["previous-blocks", "sequence", "fixed"] = "previous-blocks"
    custom: Literal["identity", "random", "external"] | None = None
    units: int = 8
    depth: int = 2
    net_size: int = 170
    block_size: int = 64
    interleaved: bool = True
    cache_first_operator: bool = False
    dag_coefficients: list[float] | None = None

    @property
    def embedding_scale(self) -> float:
        """What embedded tokens are multiplied by: the root of hidden_size."""
        return float(self.hidden_size**0.5)


def _mixer(config: PLDRConfig, layer_index: int) -> nn.Module:
    if config.cache_first_operator and config.operator == "previous-blocks":
        raise ValueError(
            'PLDRConfig: cache_first_operator must be False with operator "previous-blocks", which makes new ones '
            'behind the prompt; set operator="sequence".'
        )
    mixer = PowerLawGraphAttention(
        config.hidden_size,
        config.num_attention_heads,
        operator=config.operator,
        custom="identity" if config.custom == "external" else config.custom,
        units=config.units,
        depth=config.depth,
        net_size=config.net_size,
        block_size=config.block_size,
        interleaved=config.interleaved,
    )
    mixer.keeps_first = config.cache_first_operator
    mixer.records = config.dag_coefficients is not None
    return mixer


def _mlp(config: PLDRConfig) -> nn.Module:
    return GatedMLP(config.hidden_size, config.intermediate_size, bias=True)


def _norm(config: PLDRConfig) -> nn.Module:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)


class _Drawn(CausalPreTrainedModel):
    """How fresh weights are drawn: linear ones uniform by Xavier's rule, tokens normal, biases 0."""

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        weight = getattr(module, "weight", None)
        if not isinstance(module, (nn.Linear, nn.Embedding)):
            super()._init_weights(module)
        elif weight is not None and not getattr(weight, "_is_hf_initialized", False):
            nn.init.normal_(weight) if isinstance(module, nn.Embedding) else nn.init.xavier_uniform_(weight)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                weight[module.padding_idx].zero_()
        bias = getattr(module, "bias", None)
        if isinstance(module, nn.Linear) and bias is not None and not getattr(bias, "_is_hf_initialized", False):
            nn.init.zeros_(bias)


class PLDRModel(_Drawn, CausalModel):
    """Embedding with its norm, and blocks; without output projection."""

    config_class = PLDRConfig
    family = Family(_mixer, mlp=_mlp, norm=_norm, block=post_norm, head_bias=True)

    def assemble(self, config: Any, family: Family, **options: Any) -> None:
        """Make the parts: the norm is that of the embedding, and none follows the last block."""
        super().assemble(config, family, **options)
        self.embed_norm, self.norm = self.norm, nn.Identity()

    def run(self, hidden_states: Tensor, **past: Any) -> Tensor:
        """As `Body.run`, of embedded tokens before their norm."""
        return super().run(self.embed_norm(hidden_states), **past)


class PLDRForCausalLM(_Drawn, CausalLM, GenerationMixin):
    """A PLDR-LLM that predicts the next token; in training its loss contains `dag_loss` where that is configured."""

    config_class = PLDRConfig
    body = PLDRModel

    @functools.wraps(CausalLM.forward)  # whose arguments transformers looks at
    @can_return_tuple
    def forward(self, *args: Any, **kwargs: Any) -> CausalLMOutputWithPast:  # type: ignore[override]
        """As `CausalLM.forward`."""
        out = super().forward(*args, return_dict=True, **kwargs)
        coefficients = cast("PLDRConfig", self.config).dag_coefficients
        if coefficients is not None and self.training and out.loss is not None:
            out.loss = out.loss + dag_loss(self, coefficients)
        return cast("CausalLMOutputWithPast", out)


class PLDRForSequenceClassification(_Drawn, SequenceClassifier):
    """A PLDR-LLM that scores whole sequences."""

    config_class = PLDRConfig


@checked
def dag_loss(model: nn.Module, coefficients: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    """How far A_LM, A_P and G of the last forward are from the adjacency of a directed acyclic graph.

    The mean over layers, rows, blocks and heads of |ln(trace(exp(M * M)) / D)|, M * M entry by entry, in at least
    float32; it is 0 for a matrix of an acyclic graph.

    Args:
        model: its layers record, see `PowerLawGraphAttention.records`.
        coefficients: of A_LM, A_P and G; a term whose coefficient is 0 is not computed.
    Raises:
        ValueError: not three coefficients from 0 on, a layer that has recorded nothing, or was checkpointed.
    Source: the authors' code; arXiv:2410.16703, section 3.3.
    """
    if len(coefficients) != 3 or min(coefficients) < 0:
        raise ValueError(f"dag_loss: coefficients must be three numbers from 0 on, got {list(coefficients)}.")
    layers = [module for module in model.modules() if isinstance(module, PowerLawGraphAttention)]
    found = [layer.last_outputs for layer in layers]
    if not found or None in found:
        raise ValueError(
            "dag_loss: every layer of the model must have recorded its outputs; set records = True on its "
            "PowerLawGraphAttention layers, which must not be fixed, and run it once."
        )
    outputs = cast("list[DeductiveOutputs]", found)
    is_training = torch.is_grad_enabled() and any(p.requires_grad for p in model.parameters())
    if is_training and not all(one.operator.requires_grad for one in outputs):
        raise ValueError(
            "dag_loss: the recorded outputs carry no gradient; run the model with gradients, and without gradient "
            "checkpointing."
        )
    total = outputs[0].operator.new_zeros(())
    for weight, name in zip(coefficients, ("metric", "potential", "operator"), strict=True):
        if weight:
            total = total + weight * torch.stack([_cycles(getattr(one, name)).mean() for one in outputs]).mean()
    return total


@checked
def deductive_outputs(model: nn.Module, input_ids: Tensor) -> list[DeductiveOutputs]:
    """A, A_LM, A_P and G of every layer, made of whole rows of tokens.

    Args:
        model: a `PLDRForCausalLM` or `PLDRModel`.
        input_ids: [B, T], no padding.
    Returns:
        For each layer tensors [B, H, D, D].
    Raises:
        ValueError: a layer's operator is fixed.
    """
    body: Any = getattr(model, "model", model)
    seen = body(input_ids, use_cache=False, output_hidden_states=True).hidden_states
    return [layer.attn.deductive_outputs(x) for layer, x in zip(body.layers, seen[:-1], strict=True)]


@checked
@contextmanager
def given_operators(model: nn.Module, operators: Sequence[Tensor]) -> Iterator[None]:
    """Take these in the place of G inside the block: the cache of G without one of keys and values, or G of one prompt.

    Args:
        model: a `PLDRForCausalLM` or `PLDRModel`.
        operators: [H, D, D], or [B, H, D, D] for rows of the same batch, of each layer.
    Raises:
        ValueError: not one for each layer.
    """
    body: Any = getattr(model, "model", model)
    layers = [layer.attn for layer in body.layers]
    if len(layers) != len(operators):
        raise ValueError(
            f"given_operators: operators must be one for each of {len(layers)} layers, got {len(operators)}."
        )
    before = [layer.given for layer in layers]
    try:
        for layer, operator in zip(layers, operators, strict=True):
            layer.given = operator
        yield
    finally:
        for layer, operator in zip(layers, before, strict=True):
            layer.given = operator


@checked
def fix_operators(model: Any, operators: Sequence[Tensor]) -> None:
    """Replace every net by a matrix for each head; the model is saved and loaded as one with `custom="external"`.

    Args:
        model: a `PLDRForCausalLM` or `PLDRModel`; changed in place.
        operators: [H, D, D] of each layer, for instance `deductive_outputs(model, prompt)[i].operator[0]`.
    Raises:
        ValueError: not one for each layer. ShapeError: another size.
    """
    layers = [layer.attn for layer in getattr(model, "model", model).layers]
    if len(layers) != len(operators):
        raise ValueError(
            f"fix_operators: operators must be one for each of {len(layers)} layers, got {len(operators)}."
        )
    for layer, operator in zip(layers, operators, strict=True):
        layer.fix(operator)
    model.config.operator, model.config.custom, model.config.dag_coefficients = "fixed", "external", None


def _cycles(matrices: Tensor) -> Tensor:
    dtype = torch.promote_types(matrices.dtype, torch.float32)
    power = torch.linalg.matrix_exp(matrices.to(dtype) ** 2)
    mean: Tensor = power.diagonal(dim1=-2, dim2=-1).mean(-1)
    return mean.log().abs()


register(PLDRConfig, PLDRModel, PLDRForCausalLM, PLDRForSequenceClassification)
