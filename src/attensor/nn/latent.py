"""Latent attention as a layer: what a token leaves behind is one short vector for all heads, and a rotary key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from attensor.nn._carried import refuse_bidirectional
from attensor.nn._latent_conversion import check_kept, convert
from attensor.nn._shapes import check_range
from attensor.nn._shapes import head_dim as width_of
from attensor.nn.attention_weights import AttentionWeights
from attensor.nn.cache import TokenCache
from attensor.nn.mixer import Heads, SequenceMixer
from attensor.nn.norm import RMSNorm
from attensor.nn.rotary import Frequencies, Yarn, rotary_embedding
from attensor.ops import latent_attention
from attensor.ops._checks import checked_fields
from attensor.ops._precision import FLOATS

__all__ = ["EPSILON", "LatentAttention", "Slicing"]

EPSILON = 1e-6  # of all norms, whatever a model's configuration says of others


@checked_fields
@dataclass(frozen=True)
class Slicing:
    """A trained latent cut into slices, each of which attends for itself: what one device of several would hold.

    An approximation of the whole latent's attention, for decoding; `edit.rotate_latent` prepares a checkpoint for it.

    Attributes:
        groups: slices of the latent.
        norms: of each slice, what its sum of squares is multiplied with to stand for the whole latent's; None for the
            whole latent's own norm.
        gains: of each slice, what the scores of its latent are multiplied with.
        softmax: each slice has a softmax of its own; False: one for all, so that `norms` alone are approximate.
        when: `"decode"` (single tokens after a prompt, which itself is exact) or `"always"`.
    Source: arXiv:2508.15881, section 3; norms are its alpha as defined by its slicing condition.
    """

    groups: int = 2
    norms: tuple[float, ...] | None = None
    gains: tuple[float, ...] | None = None
    softmax: bool = True
    when: Literal["decode", "always"] = "decode"

    def __post_init__(self) -> None:
        check_range("Slicing", 1, groups=self.groups)
        for label, numbers in (("norms", self.norms), ("gains", self.gains)):
            object.__setattr__(self, label, None if numbers is None else tuple(numbers))  # JSON knows lists alone
            if numbers is not None and len(numbers) != self.groups:
                raise ValueError(
                    f"Slicing: {label} must have one number for each of the {self.groups} groups, got {len(numbers)}."
                )
        if self.when not in ("decode", "always"):
            raise ValueError(f"Slicing: when must be 'decode' or 'always', got {self.when!r}.")


class LatentAttention(SequenceMixer):
    """Multi-head latent attention (MLA): causal softmax attention that keeps kv_rank + rotary_dim numbers a token.

    Cost as `latent_attention`: a prompt as softmax attention of all heads, a decoding step reads only what is kept.
    Keys of the state_dict are those of transformers' `DeepseekV2Attention` and `DeepseekV3Attention`. A `kv_b_proj`
    that is quantised or adapted is made into its weight at every call; merge it before decoding.

    Args:
        hidden_size: channels C of input and output.
        num_heads: heads H.
        kv_rank: width R of what is kept of keys and values; C / 4 if None, or a little more that slices divide.
        q_rank: width of the latent that queries are made of; None for a plain projection.
        nope_dim: width of a head's part without positions; C / H if None.
        rotary_dim: width of the part that turns with the position, of which there is one key for all heads; half of
            nope_dim if None.
        value_dim: width of a head's values; nope_dim if None.
        rotary: base of the rotary positions, how they are stretched (`Yarn`) or each frequency (`Frequencies`); of both
            the attributes by name, too.
        slicing: cut the latent for decoding (`Slicing`, or its attributes by name); None for exact attention.
        kv_norm: latents have a norm, as in every published model; without one they are linear in the input, as those
            that are made of a softmax attention have to be.
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels, an odd rotary_dim, a number out of range, slices that do not
            divide kv_rank.
    Source: arXiv:2405.04434, section 2.1.
    """

    uses_positions = True
    reads_in_any_order = True
    num_latents: int = 1  # a token
    form: Literal["naive", "absorbed"] | None = None  # of `latent_attention`: what costs less
    carried_options: Mapping[str, Any] = {}  # of `from_attention`, which decide sizes that other weights would not
    _given: tuple[AttentionWeights, dict[str, Any]] | None = None
    shown: tuple[str, ...] = ("hidden_size", "num_heads", "kv_rank", "q_rank", "nope_dim", "rotary_dim", "value_dim")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        kv_rank: int | None = None,
        q_rank: int | None = None,
        nope_dim: int | None = None,
        rotary_dim: int | None = None,
        value_dim: int | None = None,
        rotary: float | Frequencies | Yarn | Mapping[str, Any] = 10_000.0,
        slicing: Slicing | Mapping[str, Any] | None = None,
        kv_norm: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_heads, self.kv_norm = hidden_size, num_heads, kv_norm
        self.slicing = Slicing(**slicing) if isinstance(slicing, Mapping) else slicing
        nope_dim = width_of(self, hidden_size, num_heads) if nope_dim is None else nope_dim
        check_range(self, 1, hidden_size=hidden_size, num_heads=num_heads, nope_dim=nope_dim)
        self.nope_dim = self.head_dim = nope_dim
        self.rotary_dim = max(nope_dim // 4 * 2, 2) if rotary_dim is None else rotary_dim
        self.value_dim = nope_dim if value_dim is None else value_dim
        slices = 1 if self.slicing is None else self.slicing.groups
        self.kv_rank = -(-max(hidden_size // 4, 1) // slices) * slices if kv_rank is None else kv_rank
        self.q_rank, self.rotary = q_rank, _positions(rotary) if isinstance(rotary, Mapping) else rotary
        self._check_sizes()
        sharper = 1.0 if isinstance(self.rotary, int | float) else self.rotary.score_gain
        self.scale = (nope_dim + self.rotary_dim) ** -0.5 * sharper
        self._kept = [self.num_latents * self.kv_rank, self.rotary_dim]
        self._make_projections({"device": device, "dtype": dtype})

    def _make_projections(self, made: dict[str, Any]) -> None:
        size, width = self.hidden_size, self.num_heads * (self.nope_dim + self.rotary_dim)
        if self.q_rank is None:
            self.q_proj = nn.Linear(size, width, bias=False, **made)
        else:
            self.q_a_proj = nn.Linear(size, self.q_rank, bias=False, **made)
            self.q_a_layernorm = RMSNorm(self.q_rank, eps=EPSILON, **made)
            self.q_b_proj = nn.Linear(self.q_rank, width, bias=False, **made)
        self.kv_a_proj_with_mqa = nn.Linear(size, sum(self._kept), bias=False, **made)
        self.kv_a_layernorm: nn.Module = RMSNorm(self.kv_rank, eps=EPSILON, **made) if self.kv_norm else nn.Identity()
        up_width = self.num_heads * (self.nope_dim + self.value_dim)
        self.kv_b_proj = nn.Linear(self.kv_rank, up_width, bias=False, **made)
        self.o_proj = nn.Linear(self.num_heads * self.value_dim, size, bias=False, **made)

    def _check_sizes(self) -> None:
        check_range(self, 1, value_dim=self.value_dim, kv_rank=self.kv_rank, q_rank=self.q_rank)
        check_range(self, 2, rotary_dim=self.rotary_dim)
        if self.rotary_dim % 2:
            raise ValueError(
                f"{type(self).__name__}: rotary_dim must be even, got {self.rotary_dim}; channels turn in pairs."
            )
        if isinstance(self.rotary, Frequencies):
            self.rotary.frequencies(self.rotary_dim, torch.device("cpu"), torch.float32)
        elif not isinstance(self.rotary, Yarn):
            check_range(self, above=0, rotary=self.rotary)
        if self.slicing is not None and self.kv_rank % self.slicing.groups:
            raise ValueError(
                f"{type(self).__name__}: kv_rank must be a multiple of slicing.groups, got {self.kv_rank} and "
                f"{self.slicing.groups}; choose another number of groups."
            )
        if self.slicing is not None and self.slicing.norms is not None and not self.kv_norm:
            raise ValueError(
                f"{type(self).__name__}: slicing.norms stand for the norm of the whole latent, which kv_norm=False "
                "leaves out; take slicing without norms."
            )

    @classmethod
    def from_attention(
        cls,
        weights: AttentionWeights,
        *,
        kv_rank: int | None = None,
        rotary_dim: int | None = None,
        components: Sequence[int] | None = None,
    ) -> Self:
        """A layer that computes what a trained causal attention computes, or comes near with less kept of a token.

        At full rank it is the same function, positions and biases included, and keeps as many numbers a token. With
        less of either number it is not: directions by energy stay (of inputs whose channels count alike;
        `edit.gqa_to_latent` takes their moments), and keys that no longer turn forget how far tokens are apart.
        A window is not carried over. Latents have no norm (`kv_norm=False`), so that the layer can be trained on.

        Args:
            weights: of the attention.
            kv_rank: width of the latent; all of it if None.
            rotary_dim: channels of the keys that stay turned, even; those of all key heads if None.
            components: which they are, as `carried_options` of another such layer says.
        Raises:
            ValueError: attention that sees the future, a number out of range, or another class than this.
        Cost: O(C (G d)^2), and O(C^2 G d) for less than all.
        """
        if cls is not LatentAttention:
            raise ValueError(
                f"{cls.__name__}.from_attention: heads that read one latent each cannot hold the keys of others; take "
                'LatentAttention ("mla").'
            )
        refuse_bidirectional(cls, weights.is_causal)
        check_kept(f"{cls.__name__}.from_attention", weights, kv_rank, rotary_dim)
        options: dict[str, Any] = {"kv_rank": kv_rank, "rotary_dim": rotary_dim, "components": components}
        found = convert(weights, rotary=weights.frequencies or weights.rotary_base, **options)
        to: dict[str, Any] = {"device": weights.q.device, "dtype": weights.q.dtype}
        state = {name: tensor.to(**to, copy=True).contiguous() for name, tensor in found.state.items()}
        layer = cls(weights.q.shape[1], weights.num_heads, **found.options, kv_norm=False, device="meta")
        layer._take(state)
        layer._given = weights, options
        if rotary_dim is not None:
            layer.carried_options = {"components": list(found.components)}
        return layer

    def _take(self, state: dict[str, Tensor]) -> None:
        """Weights as they are, with biases that a new layer has not."""
        for name in (name for name in state if name.endswith(".bias")):
            self.get_submodule(name.removesuffix(".bias")).bias = nn.Parameter(state[name])
        self.load_state_dict(state, assign=True)

    def to_attention(self) -> AttentionWeights:
        """The weights that `from_attention` was given, while the layer still has what was made of them.

        Raises:
            ValueError: it was not made so, or was trained: heads then read keys in ways that softmax attention has no
                projections for.
        """
        if self._given is not None:
            weights, options = self._given
            made = type(self).from_attention(weights, **options).state_dict()
            own = self.state_dict()
            is_same = (torch.equal(own[name], tensor.to(own[name])) for name, tensor in made.items())
            if own.keys() == made.keys() and all(is_same):
                return weights
        raise ValueError(
            f"{type(self).__name__}.to_attention: weights must be those that from_attention made, as no projections of "
            'softmax attention say what others compute; keep the layer, or edit.restore(model, weights="original").'
        )

    def project(self, hidden_states: Tensor, positions: Tensor | None = None) -> Heads:
        """[B, T, C] to q [B, T, H, N + D], and k [B, T, 1, R + D]: latents before their norm, and rotary keys.

        v is the latent part of k.
        """
        if self.q_rank is None:
            q = self.q_proj(hidden_states)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)).to(hidden_states.dtype))
        q = torch.unflatten(q, -1, (self.num_heads, self.nope_dim + self.rotary_dim))
        k = self.kv_a_proj_with_mqa(hidden_states)[..., None, :]
        if positions is not None:
            q, k = self._turned(q, positions), self._turned(k, positions)
        return Heads(q, k, k[..., : self._kept[0]])

    def attend(self, heads: Heads, *, cache: TokenCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Causal attention over the tokens and what the cache holds, padding left out: [B, T, H, V]."""
        sliced = self._slicing_of(heads.q.shape[1], cache)
        latent, turned = torch.split(heads.k, self._kept, -1)
        kept, real = torch.cat([self._normed(latent, sliced), turned], -1), None
        if cache is not None:
            kept = cache.append(latent=kept)["latent"]
            real = cache.real(cache.length - kept.shape[1], cache.length)
        out = self._attend(heads.q, kept, sliced, None if real is None else real[:, None, None], cu_seqlens)
        return out.to(heads.q.dtype)

    def merge(self, out: Tensor, heads: Heads) -> Tensor:
        """Output projection: [B, T, H, V] to [B, T, C]."""
        mixed: Tensor = self.o_proj(out.flatten(-2))
        return mixed

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """With the number (or of slices) and the width of latents, and the width of the rotary part."""
        count = self.num_latents if self.slicing is None else self.slicing.groups
        more = {"G": count, "R": self.kv_rank, "D": self.rotary_dim, "K": self.nope_dim, "V": self.value_dim}
        return {**super().cost_sizes(space), **more}

    def _slicing_of(self, tokens: int, cache: TokenCache | None) -> Slicing | None:
        """How so many tokens behind those of the cache see the latent; None for as a whole."""
        sliced = self.slicing
        is_decoding = cache is not None and cache.length > 0 and tokens == 1
        if sliced is not None and (sliced.groups == 1 or (sliced.when == "decode" and not is_decoding)):
            return None
        return sliced

    def _turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """The last rotary_dim channels turned by their positions."""
        still, turning = torch.split(x, [x.shape[-1] - self.rotary_dim, self.rotary_dim], -1)
        return torch.cat([still, rotary_embedding(turning, positions, base=self.rotary, interleaved=True)], -1)

    def _normed(self, latent: Tensor, sliced: Slicing | None) -> Tensor:
        """Latents [B, T, 1, R] by the norm of the whole, or of each slice standing for the whole."""
        if sliced is None or sliced.norms is None:
            normed: Tensor = self.kv_a_layernorm(latent)
            return normed.to(latent.dtype)
        dtype = torch.promote_types(latent.dtype, torch.float32)
        slices: Tensor = torch.unflatten(latent.to(dtype), -1, (sliced.groups, -1))
        shares = torch.tensor(sliced.norms, dtype=dtype, device=latent.device)[:, None] / self.kv_rank
        normed = slices * (slices.square().sum(-1, keepdim=True) * shares + EPSILON).rsqrt()
        weight: Any = self.kv_a_layernorm.weight
        weighed: Tensor = normed.flatten(-2) * weight.to(dtype)
        return weighed.to(latent.dtype)

    def _attend(
        self, q: Tensor, kept: Tensor, sliced: Slicing | None, mask: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        """Queries to what is kept; with slices, to each by itself, and the sum."""
        by_head = torch.unflatten(self._up_weight(q), 0, (self.num_heads, -1))  # [H, N + V, R]
        key_weight, value_weight = torch.split(by_head, [self.nope_dim, self.value_dim], 1)
        q, q_rotary = torch.split(q, [self.nope_dim, self.rotary_dim], -1)
        latent, k_rotary = torch.split(kept, self._kept, -1)
        if self.num_latents > 1:
            latent = torch.unflatten(latent.flatten(2), -1, (self.num_latents, self.kv_rank))
        groups = sliced.groups if sliced is not None and sliced.softmax else 1
        if groups > 1:
            gains = None if sliced is None else sliced.gains
            key_weight, value_weight = (_slices(w, groups) for w in (key_weight, value_weight))
            if gains is not None:
                factors = torch.tensor(gains, dtype=q.dtype, device=q.device).repeat_interleave(self.num_heads)
                key_weight = key_weight * factors[:, None, None]
            q, q_rotary = (t.repeat(1, 1, groups, 1) for t in (q, q_rotary))
            latent = torch.unflatten(latent.flatten(2), -1, (groups, -1))
        out: Tensor = latent_attention(
            q,
            latent,
            key_weight,
            value_weight,
            q_rotary=q_rotary,
            k_rotary=k_rotary,
            scale=self.scale,
            is_causal=True,
            attn_mask=mask,
            cu_seqlens=cu_seqlens,
            form=self.form,
        )
        return out if groups == 1 else torch.unflatten(out, 2, (groups, self.num_heads)).sum(2)

    def _up_weight(self, like: Tensor) -> Tensor:
        """What makes keys and values of a latent, [H (N + V), R], of weights that are quantised or adapted, too."""
        up = self.kv_b_proj
        if type(up) is nn.Linear and type(up.weight) is nn.Parameter and up.weight.dtype in FLOATS:
            return up.weight.to(like.dtype)
        made: Tensor = up(torch.eye(self.kv_rank, device=like.device, dtype=like.dtype))
        return made.mT

    def _new_cache(
        self, batch_size: int, max_length: int | None, device: torch.device, dtype: torch.dtype | None
    ) -> TokenCache:
        size = {"latent": (1, sum(self._kept))}
        return TokenCache(batch_size, size, max_length=max_length, device=device, dtype=dtype)


def _positions(given: Mapping[str, Any]) -> Frequencies | Yarn:
    return Frequencies(**given) if "values" in given else Yarn(**given)


def _slices(weight: Tensor, groups: int) -> Tensor:
    """[H, width, R] to the slices of R one after the other, each for all heads: [G H, width, R / G]."""
    return torch.unflatten(weight, -1, (groups, -1)).permute(2, 0, 1, 3).flatten(0, 1)
