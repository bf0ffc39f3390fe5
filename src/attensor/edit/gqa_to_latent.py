r"""Softmax attention with grouped heads as latent attention: the same function, or one that keeps less a token.

A key of G heads turns pair by pair, z_p -> e^(i t f_p) z_p with z_p in C^G the same pair of all heads, so that any
unitary map between the heads may come before the turning. Its eigenvectors give every pair G components by energy:

    turned:   the `rotary_dim / 2` components whose scores have most energy, with the frequencies of their pairs, are
              the rotary key; queries are mapped along, q_hpm = conj(U_gm) q_hp
    latent:   what is left of the keys, no longer turned, and all values: one matrix, of which `kv_rank` directions are
              kept

What is exact: everything at full rank (`rotary_dim` of all keys, `kv_rank` of all values), which keeps as many numbers
a token as before and makes queries G times as wide; and any rank that holds all energy. Keys without positions need no
rotary part and share the latent with the values. What is not: components that lose their turning (a score then forgets
how far its tokens are apart), and directions that are left out; how much either holds is returned.

The norm of a latent stands between the two maps of a `LatentAttention`, and is no norm here: latents are made so small
beside its eps that it multiplies all of them by eps^-1/2, and its weight takes that back. So the layer's weights are
those of any DeepSeek-like layer. They hold in float32 and bfloat16, not in float16, and are no start for training on:
one step of usual size is many times such small weights.
Sizes: C channels, H query heads on G key/value heads of width d. Source: after arXiv:2502.07864 (TransMLA), section 4;
there real rotations, and a norm that changes the function.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attensor.edit.rotate import check_moment, hooked
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


class _Keys(NamedTuple):
    """What scores are made of, with D rotary channels, N others and M rows of the latent's that are keys."""

    rotary: Tensor  # [D, C]
    rotary_queries: Tensor  # [H, D, C]
    rows: Tensor  # [M, C]
    up: Tensor  # [H, N, M]
    queries: Tensor  # [H, N, C]
    frequencies: Frequencies
    turned: float


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
    q, k, v = (w.detach().double() for w in (weights.q, weights.k, weights.v))
    inputs = torch.eye(q.shape[1], dtype=q.dtype, device=q.device) if moment is None else moment.to(q)
    heads, groups = (torch.unflatten(w, 0, (-1, weights.head_dim)) for w in (q, k))
    keys = _still(heads, groups) if rotary is None else _turning(heads, groups, rotary, rotary_dim, inputs)
    up, down, kept = _latent(keys.rows, k, v, kv_rank, inputs)
    layer = _layer(weights, keys, up, down, _small(down, inputs))
    return LatentConversion(layer.train(getattr(source, "training", False)), keys.turned, kept)


def _layer(weights: AttentionWeights, keys: _Keys, up: Tensor, down: Tensor, small: float) -> LatentAttention:
    """The layer of latents `down`, made small, which `up` [M + G d, R] makes keys and values of."""
    width, per_group = weights.head_dim, weights.num_heads // weights.num_kv_heads
    from_keys, from_values = torch.split(up, [len(keys.rows), len(up) - len(keys.rows)])
    key_weight = torch.einsum("hnm,mr->hnr", keys.up, from_keys)
    value_weight = torch.unflatten(from_values, 0, (-1, width)).repeat_interleave(per_group, 0)
    nope, turning = keys.queries.shape[1], len(keys.rotary)
    layer = LatentAttention(
        down.shape[1],
        weights.num_heads,
        kv_rank=len(down),
        nope_dim=nope,
        rotary_dim=turning,
        value_dim=width,
        rotary=keys.frequencies,
        device=weights.q.device,
        dtype=weights.q.dtype,
    )
    sharper = ((nope + turning) / width) ** 0.5  # the layer divides by the root of its own width
    state = {
        "q_proj.weight": sharper * torch.cat([keys.queries, keys.rotary_queries], 1).flatten(0, 1),
        "kv_a_proj_with_mqa.weight": torch.cat([small * down, keys.rotary]),
        "kv_a_layernorm.weight": down.new_full((len(down),), _EPS**0.5 / small),
        "kv_b_proj.weight": torch.cat([key_weight, value_weight], 1).flatten(0, 1),
        "o_proj.weight": weights.out.detach(),
    }
    layer.load_state_dict({name: tensor.to(weights.q.dtype) for name, tensor in state.items()})
    return layer


def _read(
    source: AttentionWeights | AttentionSite | nn.Module, rotary: float | Frequencies | Yarn | None
) -> tuple[AttentionWeights, float | Frequencies | Yarn | None]:
    if isinstance(source, AttentionWeights):
        weights = source
    elif isinstance(source, AttentionSite):
        weights = source.weights()
        tables = [one for one in source.model.modules() if hasattr(one, "inv_freq")]
        if rotary is None and tables and source.kind == "transformers":
            table: Any = tables[0]
            rotary = Frequencies(tuple(table.inv_freq.tolist()), float(getattr(table, "attention_scaling", 1.0)))
    elif hasattr(source, "to_attention"):
        layer: Any = source
        weights = layer.to_attention()
        if getattr(source, "window_size", None) is not None:
            raise ValueError("gqa_to_latent: source has a window, which latent attention does not have.")
    else:
        raise TypeError(
            f"gqa_to_latent: source must be AttentionWeights, a site of find_sites or a layer with to_attention, got "
            f"{type(source).__name__}."
        )
    return weights, weights.rotary_base if rotary is None else rotary


def _check(weights: AttentionWeights, kv_rank: int | None, rotary_dim: int | None, moment: Tensor | None) -> None:
    if not weights.is_causal:
        raise ValueError("gqa_to_latent: source must be causal, as latent attention is.")
    biases = [n for n in ("q_bias", "k_bias", "v_bias", "out_bias") if getattr(weights, n) is not None]
    if learned := [name for name in biases if bool(getattr(weights, name).any())]:
        raise ValueError(f"gqa_to_latent: source has {', '.join(learned)}, for which latent attention has no place.")
    if weights.q.dtype == torch.float16:
        raise ValueError("gqa_to_latent: float16 cannot hold the small weights of latents; use .to(torch.bfloat16).")
    channels, all_keys = weights.q.shape[1], weights.num_kv_heads * weights.head_dim
    if rotary_dim is not None and not (0 < rotary_dim <= all_keys and rotary_dim % 2 == 0):
        raise ValueError(f"gqa_to_latent: rotary_dim must be even and from 2 to {all_keys}, got {rotary_dim}.")
    if kv_rank is not None and kv_rank < 1:
        raise ValueError(f"gqa_to_latent: kv_rank must be at least 1, got {kv_rank}.")
    if moment is not None:
        check_moment("gqa_to_latent", "moment", moment, channels, "edit.input_moments")


def _still(heads: Tensor, groups: Tensor) -> _Keys:
    """Keys [G, d, C] without positions: all of them in the latent; a rotary part of zeros, as a layer must have one."""
    count, width, channels = groups.shape
    own = torch.unflatten(torch.eye(count * width).to(groups), 0, (count, width))
    rotary, queries = groups.new_zeros(2, channels), heads.new_zeros(len(heads), 2, channels)
    up = own.repeat_interleave(len(heads) // count, 0)
    return _Keys(rotary, queries, groups.flatten(0, 1), up, heads, Frequencies((1.0,)), 1.0)


def _turning(
    heads: Tensor, groups: Tensor, rotary: float | Frequencies | Yarn, rotary_dim: int | None, inputs: Tensor
) -> _Keys:
    """Keys [G, d, C] whose halves turn against each other, and queries [H, d, C]."""
    count, width, _ = groups.shape
    pairs, per_group = width // 2, len(heads) // count
    k = torch.complex(*groups.chunk(2, 1)).transpose(0, 1)  # [P, G, C]
    q = torch.complex(*heads.chunk(2, 1)).transpose(0, 1)  # [P, H, C]
    wide = inputs.to(k.dtype)
    moments = k @ wide @ k.mH
    energies, bases = (x.flip(-1) for x in torch.linalg.eigh(moments))  # components by energy
    parts = bases.mH @ k  # [P, G, C], component m of each pair
    by_head = bases.repeat_interleave(per_group, 1)  # [P, H, G]: U_gm as a head sees it
    asked = torch.einsum("phc,cd,phd->ph", q, wide, q.conj()).real  # energy of the queries
    scores = energies.clamp(min=0) * torch.einsum("phm,ph->pm", by_head.abs().square(), asked)
    wanted = count * pairs if rotary_dim is None else rotary_dim // 2
    order = scores.flatten().sort(descending=True, stable=True).indices
    chosen = order[:wanted].sort().values
    p, m = chosen // count, chosen % count
    mapped = (by_head[p, :, m].conj()[..., None] * q[p]).transpose(0, 1)  # [H, wanted, C]
    turned = float(scores.flatten()[chosen].sum() / scores.sum()) if scores.sum() > 0 else 1.0
    return _Keys(
        _as_real(parts[p, m], 0),
        _as_real(mapped, 1),
        *_left(parts, by_head, q, order[wanted:]),
        _frequencies(rotary, width, p),
        turned,
    )


def _left(parts: Tensor, by_head: Tensor, q: Tensor, rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the latent that are keys, how heads read them, and their queries, of the components that do not turn."""
    heads, count, channels = q.shape[1], parts.shape[1], q.shape[2]
    if not len(rest):  # a layer must have a part that does not turn
        zeros = parts.real.new_zeros
        return zeros(0, channels), zeros(heads, 1, 0), zeros(heads, 1, channels)
    p, m = rest // count, rest % count
    places, place = torch.unique(p, return_inverse=True)
    read = by_head.new_zeros(heads, len(places), len(rest))
    read[:, place, torch.arange(len(rest), device=rest.device)] = by_head[p, :, m].mT
    up = torch.stack([torch.stack([read.real, -read.imag], -1), torch.stack([read.imag, read.real], -1)], 2)
    return _as_real(parts[p, m], 0), up.flatten(1, 2).flatten(2, 3), _as_real(q[places].transpose(0, 1), 1)


def _as_real(x: Tensor, dim: int) -> Tensor:
    """Real and imaginary parts as neighbours along dim."""
    return torch.stack([x.real, x.imag], dim + 1).flatten(dim, dim + 1)


def _frequencies(rotary: float | Frequencies | Yarn, width: int, pairs: Tensor) -> Frequencies:
    if isinstance(rotary, Frequencies | Yarn):
        values = rotary.frequencies(width, pairs.device, torch.float64)
        return Frequencies(tuple(values[pairs].tolist()), rotary.gain, rotary.score_gain)
    steps = torch.arange(width // 2, device=pairs.device, dtype=torch.float64)
    return Frequencies(tuple((float(rotary) ** (-2 * steps / width))[pairs].tolist()))


def _latent(rows: Tensor, k: Tensor, v: Tensor, kv_rank: int | None, inputs: Tensor) -> tuple[Tensor, Tensor, float]:
    """[M + G d, R] and [R, C] whose product is rows and v, or comes near by energy; and the share that is kept.

    Energy of rows counts as a share of that of all keys k, as that of values does.
    """
    matrix = torch.cat([rows, v])
    most = min(matrix.shape)
    if kv_rank is None and len(matrix) == most:
        return torch.eye(most).to(matrix), matrix, 1.0
    if kv_rank is None or kv_rank >= most:  # whatever the inputs are
        left, middle, right = torch.linalg.svd(matrix, full_matrices=False)
        up, down = left, middle[:, None] * right
        missing = (kv_rank or most) - most
        return nn.functional.pad(up, (0, missing)), nn.functional.pad(down, (0, 0, 0, missing)), 1.0
    of_keys, of_values = (float(((x @ inputs) * x).sum()) for x in (k, v))
    scale = torch.ones(len(matrix), 1).to(matrix)
    scale[: len(rows)] = math.sqrt(of_values / of_keys) if of_keys > 0 < of_values else 1.0
    scaled = matrix * scale
    energies, vectors = (x.flip(-1) for x in torch.linalg.eigh(scaled @ inputs @ scaled.mT))
    vectors = vectors[:, :kv_rank]
    energies = energies.clamp(min=0)
    kept = float(energies[:kv_rank].sum() / energies.sum()) if energies.sum() > 0 else 1.0
    return vectors / scale, vectors.mT @ scaled, kept


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
