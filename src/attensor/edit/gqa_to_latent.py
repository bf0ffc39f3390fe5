"""Softmax attention with grouped heads as latent attention of DeepSeek's layout, with what it loses where it does.

The mathematics and what is exact are in `nn._latent_conversion`. `nn.LatentAttention.from_attention`, which a swap
takes, leaves latents without a norm, so that they can be trained on. Here the layer has the norm that every engine for
such layers expects: latents are made so small beside its eps that it multiplies all of them by eps^-1/2, and its weight
takes that back. Such weights hold in float32 and bfloat16, not in float16, and are no start for training on: one step
of usual size is many times as large as they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attensor.edit.rotate import check_moment, hooked
from attensor.nn._latent_conversion import check_kept, convert
from attensor.nn._shapes import check_range
from attensor.nn.attention_weights import AttentionWeights
from attensor.nn.latent import LatentAttention
from attensor.nn.rotary import Frequencies, Yarn
from attensor.ops._checks import checked
from attensor.sites import AttentionSite, find_sites

__all__ = ["LatentConversion", "gqa_to_latent", "input_moments"]

_EPS = 1e-6  # of the layer's norms
_LINEAR = 1e-18  # how far the norm may be from a multiplication at the mean energy, relative


class LatentConversion(NamedTuple):
    """A converted attention.

    Attributes:
        layer: with the weights, in the original's dtype.
        turned: share of the scores' energy whose keys keep their turning; 1 where all do, or there are no positions.
        kept: share of the latent's energy that is kept: that of values and of keys that are not turned, as if all keys
            had as much as all values.
    """

    layer: LatentAttention
    turned: float
    kept: float


@checked
def gqa_to_latent(
    source: AttentionWeights | AttentionSite | nn.Module,
    *,
    kv_rank: int | None = None,
    rotary_dim: int | None = None,
    moment: Tensor | None = None,
    rotary: float | Frequencies | Yarn | None = None,
) -> LatentConversion:
    """A latent attention of a causal softmax attention's weights.

    Args:
        source: weights, a site of `sites.find_sites` (Llama-like models with the model's own frequencies), or a layer
            with `to_attention` such as `SoftmaxAttention`.
        kv_rank: width of the latent; all of it if None.
        rotary_dim: channels of the keys that stay turned, even; all G d if None.
        moment: [C, C], second moment of the layer's inputs, by which energies are meant (`input_moments`); all
            directions of the inputs count alike if None.
        rotary: the positions of weights that turn otherwise than their `rotary_base` says.
    Raises:
        ValueError: attention that is not causal or has biases, float16, or a rank out of range.
        ShapeError, TypeError, ValueError: a moment of another size or dtype, or one that is not finite.
    """
    if isinstance(rotary, (int, float)):
        check_range("gqa_to_latent", above=0, rotary=rotary)
    weights, rotary = _read(source, rotary)
    _check(weights, kv_rank, rotary_dim, moment)
    plain = dataclasses.replace(weights, q_bias=None, k_bias=None, v_bias=None, out_bias=None)  # which are zero
    found = convert(plain, rotary=rotary, kv_rank=kv_rank, rotary_dim=rotary_dim, moment=moment)
    made: dict[str, Any] = {"device": weights.q.device, "dtype": weights.q.dtype}
    layer = LatentAttention(weights.q.shape[1], weights.num_heads, **found.options, **made)
    state = _with_norm(found.state, layer.kv_rank, moment)
    layer.load_state_dict({name: tensor.to(weights.q.dtype) for name, tensor in state.items()})
    return LatentConversion(layer.train(getattr(source, "training", False)), found.turned, found.kept)


def _with_norm(state: dict[str, Tensor], rank: int, moment: Tensor | None) -> dict[str, Tensor]:
    """The weights with latents so small that a norm multiplies them, and its weight that takes that back."""
    both = state["kv_a_proj_with_mqa.weight"]
    down, rotary = torch.split(both, [rank, len(both) - rank])
    small = _small(down, torch.eye(down.shape[1]).to(down) if moment is None else moment.to(down))
    return {
        **state,
        "kv_a_proj_with_mqa.weight": torch.cat([small * down, rotary]),
        "kv_a_layernorm.weight": down.new_full((rank,), _EPS**0.5 / small),
    }


def _read(
    source: AttentionWeights | AttentionSite | nn.Module, rotary: float | Frequencies | Yarn | None
) -> tuple[AttentionWeights, float | Frequencies | Yarn | None]:
    if isinstance(source, AttentionWeights):
        weights = source
    elif isinstance(source, AttentionSite):
        weights = source.weights()
    elif hasattr(source, "to_attention"):
        layer: Any = source
        weights = layer.to_attention()
    else:
        raise TypeError(
            f"gqa_to_latent: source must be AttentionWeights, a site of find_sites or a layer with to_attention, got "
            f"{type(source).__name__}."
        )
    return weights, rotary if rotary is not None else weights.frequencies or weights.rotary_base


def _check(weights: AttentionWeights, kv_rank: int | None, rotary_dim: int | None, moment: Tensor | None) -> None:
    if not weights.is_causal:
        raise ValueError("gqa_to_latent: source must be causal, as latent attention is.")
    if weights.window_size is not None:
        raise ValueError(
            f"gqa_to_latent: source has a window of {weights.window_size} tokens, which latent attention does not have."
        )
    biases = [n for n in ("q_bias", "k_bias", "v_bias", "out_bias") if getattr(weights, n) is not None]
    if learned := [name for name in biases if bool(getattr(weights, name).any())]:
        raise ValueError(f"gqa_to_latent: source has {', '.join(learned)}, for which latent attention has no place.")
    if weights.q.dtype == torch.float16:
        raise ValueError("gqa_to_latent: float16 cannot hold the small weights of latents; use .to(torch.bfloat16).")
    check_kept("gqa_to_latent", weights, kv_rank, rotary_dim)
    if moment is not None:
        check_moment("gqa_to_latent", "moment", moment, weights.q.shape[1], "edit.input_moments")


def _small(down: Tensor, inputs: Tensor) -> float:
    """A power of two that makes latents so small that their norm is a multiplication."""
    mean = float(((down @ inputs) * down).sum() / len(down))
    return 2.0 ** math.floor(0.5 * math.log2(2 * _EPS * _LINEAR / mean)) if mean > 0 else 1.0


@checked
def input_moments(model: nn.Module, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Second moments of what every attention of a model receives: name of the site -> float64 [C, C].

    Args:
        model: with attentions that `sites.find_sites` knows.
        batches: inputs; each is handed to `model(batch)`, or `model(**batch)` if it is a mapping.
    Raises:
        ValueError: no attention, or no tokens.
    """
    sums: dict[str, tuple[Tensor, int]] = {}

    def observe(site: AttentionSite) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x = site.call(args, kwargs).hidden_states.flatten(0, -2).double()
            total, count = sums.get(site.name, (torch.zeros_like(x.mT @ x), 0))
            sums[site.name] = (total + x.mT @ x, count + len(x))

        return hook

    with torch.no_grad(), hooked({site.module: observe(site) for site in find_sites(model)}, with_kwargs=True):
        for batch in batches:
            model(**batch) if isinstance(batch, Mapping) else model(batch)
    if not sums or not all(count for _, count in sums.values()):
        raise ValueError("input_moments: batches must hold a token, got none; pass text of the model's use.")
    return {name: total / count for name, (total, count) in sums.items()}
