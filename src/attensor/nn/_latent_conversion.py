r"""Weights of a softmax attention as those of a latent attention: the same function, or one that keeps less a token.

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

Biases are one more channel of the inputs, which is always 1.
Sizes: C channels, H query heads on G key/value heads of width d. Source: after arXiv:2502.07864 (TransMLA), section 4;
there real rotations, and a norm that changes the function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attensor.nn._shapes import check_range
from attensor.nn.attention_weights import AttentionWeights
from attensor.nn.rotary import Frequencies, Yarn

__all__ = ["Converted", "check_kept", "convert"]

Rotary = float | Frequencies | Yarn


@dataclass(frozen=True)
class Converted:
    """A converted attention, in float64.

    Attributes:
        options: of a `LatentAttention` without a norm of its latents.
        state: weights by the names of its state_dict, and biases where the attention has some.
        components: which of the keys' components stay turned, in order; pair times G and place by energy.
        turned, kept: see `edit.LatentConversion`.
    """

    options: dict[str, Any]
    state: dict[str, Tensor]
    components: tuple[int, ...]
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
    components: tuple[int, ...]
    turned: float


def check_kept(who: str, weights: AttentionWeights, kv_rank: int | None, rotary_dim: int | None) -> None:
    """Refuse numbers that the attention does not have.

    Raises:
        ValueError: a width of the latent below 1, or another number of turned channels than keys have.
    """
    all_keys = weights.num_kv_heads * weights.head_dim
    if rotary_dim is not None and not (0 < rotary_dim <= all_keys and rotary_dim % 2 == 0):
        raise ValueError(f"{who}: rotary_dim must be even and from 2 to {all_keys}, got {rotary_dim}.")
    check_range(who, 1, kv_rank=kv_rank)


def convert(
    weights: AttentionWeights,
    *,
    rotary: Rotary | None,
    kv_rank: int | None = None,
    rotary_dim: int | None = None,
    moment: Tensor | None = None,
    components: Sequence[int] | None = None,
) -> Converted:
    """See the module; the arguments of `edit.gqa_to_latent`, and `components` to take instead of those by energy."""
    has_bias = any(bias is not None for bias in (weights.q_bias, weights.k_bias, weights.v_bias))
    pairs = ((weights.q, weights.q_bias), (weights.k, weights.k_bias), (weights.v, weights.v_bias))
    q, k, v = (_with_bias(weight, bias, has_bias) for weight, bias in pairs)
    inputs = torch.eye(q.shape[1], dtype=q.dtype, device=q.device)
    if moment is not None:
        inputs[: len(moment), : len(moment)] = moment.to(inputs)
    heads, groups = (torch.unflatten(w, 0, (-1, weights.head_dim)) for w in (q, k))
    turning = (rotary_dim, inputs, components)
    keys = _still(heads, groups) if rotary is None else _turning(heads, groups, rotary, *turning)
    up, down, kept = _latent(keys.rows, k, v, kv_rank, inputs)
    options = {
        "kv_rank": len(down),
        "nope_dim": keys.queries.shape[1],
        "rotary_dim": len(keys.rotary),
        "value_dim": weights.head_dim,
        "rotary": keys.frequencies,
    }
    return Converted(options, _state(weights, keys, up, down, has_bias), keys.components, keys.turned, kept)


def _with_bias(weight: Tensor, bias: Tensor | None, has_bias: bool) -> Tensor:
    """[out, C] in float64, with the bias as one more column where one of the projections has one."""
    weight = weight.detach().double()
    if not has_bias:
        return weight
    column = weight.new_zeros(len(weight)) if bias is None else bias.detach().to(weight)
    return torch.cat([weight, column[:, None]], 1)


def _state(weights: AttentionWeights, keys: _Keys, up: Tensor, down: Tensor, has_bias: bool) -> dict[str, Tensor]:
    """Of latents `down` [R, C], which `up` [M + G d, R] makes keys and values of."""
    width, per_group = weights.head_dim, weights.num_heads // weights.num_kv_heads
    from_keys, from_values = torch.split(up, [len(keys.rows), len(up) - len(keys.rows)])
    key_weight = torch.einsum("hnm,mr->hnr", keys.up, from_keys)
    value_weight = torch.unflatten(from_values, 0, (-1, width)).repeat_interleave(per_group, 0)
    nope, turning = keys.queries.shape[1], len(keys.rotary)
    sharper = ((nope + turning) / width) ** 0.5  # the layer divides by the root of its own width
    wide = {
        "q_proj": sharper * torch.cat([keys.queries, keys.rotary_queries], 1).flatten(0, 1),
        "kv_a_proj_with_mqa": torch.cat([down, keys.rotary]),
    }
    state = {
        "kv_b_proj.weight": torch.cat([key_weight, value_weight], 1).flatten(0, 1),
        "o_proj.weight": weights.out.detach().double(),
    }
    for name, both in wide.items():
        state[f"{name}.weight"] = both[:, :-1] if has_bias else both
        if has_bias:
            state[f"{name}.bias"] = both[:, -1]
    if weights.out_bias is not None:
        state["o_proj.bias"] = weights.out_bias.detach().double()
    return state


def _still(heads: Tensor, groups: Tensor) -> _Keys:
    """Keys [G, d, C] without positions: all of them in the latent; a rotary part of zeros, as a layer must have one."""
    count, width, channels = groups.shape
    own = torch.unflatten(torch.eye(count * width).to(groups), 0, (count, width))
    rotary, queries = groups.new_zeros(2, channels), heads.new_zeros(len(heads), 2, channels)
    up = own.repeat_interleave(len(heads) // count, 0)
    return _Keys(rotary, queries, groups.flatten(0, 1), up, heads, Frequencies((1.0,)), (), 1.0)


def _turning(
    heads: Tensor,
    groups: Tensor,
    rotary: Rotary,
    rotary_dim: int | None,
    inputs: Tensor,
    components: Sequence[int] | None,
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
    order = scores.flatten().sort(descending=True, stable=True).indices
    if components is None:
        wanted = count * pairs if rotary_dim is None else rotary_dim // 2
        chosen = order[:wanted].sort().values
    else:
        chosen = torch.tensor(sorted(components), device=order.device)
    rest = order[~torch.isin(order, chosen)]
    p, m = chosen // count, chosen % count
    mapped = (by_head[p, :, m].conj()[..., None] * q[p]).transpose(0, 1)  # [H, wanted, C]
    turned = float(scores.flatten()[chosen].sum() / scores.sum()) if scores.sum() > 0 else 1.0
    return _Keys(
        _as_real(parts[p, m], 0),
        _as_real(mapped, 1),
        *_left(parts, by_head, q, rest),
        _frequencies(rotary, width, p),
        tuple(chosen.tolist()),
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


def _frequencies(rotary: Rotary, width: int, pairs: Tensor) -> Frequencies:
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
