"""The body of the linear family: projections, one chunked recurrence, output norm, gate, decode state.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T        o_t = scale * S_t^T q_t        y = W_o (gate(x) * norm(o))

Members of the family differ in the log decay g and in what they put around it; each states only that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn._carried import accepted, carry_repeated, given_repeated, refuse_bidirectional, refuse_qk_norm
from attensor.nn._shapes import head_dim, kv_heads
from attensor.nn.attention_weights import AttentionWeights
from attensor.nn.cache import StateCache
from attensor.nn.features import LearnedFeatures, RandomFeatures
from attensor.nn.mixer import Heads, SequenceMixer
from attensor.nn.norm import LayerNorm, RMSNorm, add_qk_norm, qk_normed
from attensor.nn.padding import bounds_of_padding
from attensor.nn.rotary import rotary_embedding
from attensor.ops import Denominator, kernel_attention, kernel_attention_step, linear_attention, linear_attention_step
from attensor.ops.feature_maps import resolve_feature_map

__all__ = ["LinearAttention"]

Norm = Literal["rms", "layer", "rms-all-heads", "simple-rms"]
Gate = Literal["swish", "sigmoid", "linear"]
FeatureMap = str | Callable[[Tensor], Tensor]

_ALL_HEADS = ("rms-all-heads", "simple-rms")


class LinearAttention(SequenceMixer):
    """Attention without softmax: a matrix state of constant size sums up the past (no decay in this class).

    Cost O(T (chunk + K) V) per head; decoding keeps one [K, V] matrix per head. Unless `normalize` is set there is no
    denominator: the norm after it takes that role. Keys of the state_dict: `{q,k,v,o}_proj.weight`, `g_norm.weight`,
    `g_proj` where there is a gate, `feature_map` where features are random or learned.

    A subclass overrides `log_decay` (and `activate`, `scale`, `uses_positions`) and is done.

    Args:
        hidden_size: channels C of input and output.
        num_heads: query heads H.
        num_kv_heads: key/value heads, a divisor of H; H if None.
        key_size: channels of all query heads together, K = key_size / H; C if None.
        value_size: channels of all values together, V = value_size / H; C if None.
        feature_map: of queries and keys: `"elu+1"`, `"relu"`, `"silu"`, `"positive-random"`, `"learned"`, or a function
            or module [B, T, heads, K] -> [B, T, heads, M]; none if None.
        normalize: divide each output by the sum of its weights; needs features that are not negative.
        norm: of the output: `"rms"` per head with a weight, `"layer"` per head without one, `"rms-all-heads"` over
            all heads together with a weight, `"simple-rms"` the same without one; none if None.
        output_gate: `"swish"`, `"sigmoid"` or `"linear"` (itself) of a projection of the input multiplies the normed
            output; none if None.
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels.
    Source: arXiv:2006.16236, section 3.3 (identity features, norm instead of the denominator: arXiv:2210.10340).
    """

    shown: tuple[str, ...] = (
        "hidden_size",
        "num_heads",
        "num_kv_heads",
        "key_dim",
        "value_dim",
        "norm",
        "output_gate",
    )
    scale: float | None = None  # of the scores; K ** -0.5 if None
    rotary_base: float = 10_000.0  # where `uses_positions` is set
    _carried_kv_heads: int | None = None  # of the attention that it was made from

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        key_size: int | None = None,
        value_size: int | None = None,
        feature_map: FeatureMap | None = None,
        normalize: bool = False,
        norm: Norm | None = "rms",
        output_gate: Gate | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_heads = hidden_size, num_heads
        head_dim(self, hidden_size, num_heads)
        self.num_kv_heads = kv_heads(self, num_heads, num_kv_heads)
        key_size = hidden_size if key_size is None else key_size
        value_size = hidden_size if value_size is None else value_size
        self.key_dim = head_dim(self, key_size, num_heads, argument="key_size")
        self.value_dim = head_dim(self, value_size, num_heads, argument="value_size")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.feature_map = _feature_map(type(self).__name__, feature_map, self.key_dim, **factory)
        self.denominator = Denominator() if normalize else None
        self.norm, self.output_gate = norm, output_gate
        self.q_proj = nn.Linear(hidden_size, key_size, bias=False, **factory)
        self.k_proj = nn.Linear(hidden_size, self.num_kv_heads * self.key_dim, bias=False, **factory)
        self.v_proj = nn.Linear(hidden_size, self.num_kv_heads * self.value_dim, bias=False, **factory)
        self.g_norm = self._new_norm(norm, **factory)
        if output_gate is not None:
            self.g_proj = nn.Linear(hidden_size, value_size, bias=False, **factory)
        self.o_proj = nn.Linear(value_size, hidden_size, bias=False, **factory)

    @classmethod
    def from_attention(cls, weights: AttentionWeights, **options: Any) -> Self:
        """A layer with the projections of a trained causal attention; what else it has is drawn anew.

        Values that are wider here are filled with copies, whose outputs are averaged; key/value heads are repeated
        where the layer has more. Queries and keys turn with their positions as those of the attention did, unless the
        layer has positions of its own kind. No softmax stands between scores and values any more: only a layer that is
        trained on gives what the attention gave.

        Args:
            weights: of the attention.
            options: of the constructor; what they leave out is the attention's.
        Raises:
            ShapeError, ValueError: sizes that the layer cannot have, or attention that sees the future.
        """
        refuse_bidirectional(cls, weights.is_causal)
        size = weights.num_heads * weights.head_dim
        offered = {"num_kv_heads": weights.num_kv_heads, "key_size": size, "value_size": size}
        made = {"device": weights.q.device, "dtype": weights.q.dtype}
        layer = cls(weights.q.shape[1], weights.num_heads, **{**accepted(cls, **offered), **made, **options})
        if weights.rotary_base is not None and cls.embed_positions is LinearAttention.embed_positions:
            layer.uses_positions, layer.rotary_base = True, weights.rotary_base
        layer._carried_kv_heads = weights.num_kv_heads
        carry_repeated(layer, weights, layer.num_kv_heads, layer.num_kv_heads, layer.value_dim)
        return layer

    def to_attention(self) -> AttentionWeights:
        """The projections, for a softmax attention.

        Bit for bit those of `from_attention` as long as they are not trained; of copies the first counts.

        Raises:
            ValueError: keys that are no part of the values' width: no attention has such heads; norms of queries.
        """
        refuse_qk_norm(self)
        times, rest = divmod(self.value_dim, self.key_dim)
        if rest:
            raise ValueError(
                f"{type(self).__name__}.to_attention: value_dim must be a multiple of key_dim {self.key_dim} for "
                f"softmax attention, got {self.value_dim}; keep the layer, or swap with fresh weights."
            )
        shared = self._carried_kv_heads or self.num_kv_heads
        tensors: dict[str, Any] = given_repeated(self, shared, self.num_kv_heads, self.num_kv_heads, times)
        return AttentionWeights(
            **tensors,
            num_heads=self.num_heads,
            num_kv_heads=shared,
            head_dim=self.key_dim,
            rotary_base=self.rotary_base if self.uses_positions else None,
            is_causal=True,
        )

    def activate(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is done to projected queries, keys and values, [B, T, channels], before all else: norms, if any."""
        if not hasattr(self, "q_norm"):
            return q, k, v
        heads = (torch.unflatten(x, -1, (-1, self.key_dim)) for x in (q, k))
        q, k = (x.flatten(-2) for x in qk_normed(self, *heads))
        return q, k, v

    def embed_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        """Queries or keys [B, T, H, K] turned by positions [T] or [B, T], where `uses_positions` is set."""
        return rotary_embedding(x, positions, base=self.rotary_base)

    def log_decay(self, hidden_states: Tensor) -> Tensor | None:
        """Natural logarithm of the factor that one step multiplies the state by, <= 0; None for no decay.

        Args:
            hidden_states: [B, T, C].
        Returns:
            [Hd], [B, T, Hd] or [B, T, Hd, K] in at least float32, Hd being all heads or the key/value heads; or None.
        """
        return None

    def project(self, hidden_states: Tensor, positions: Tensor | None = None) -> Heads:
        """[B, T, C] to queries [B, T, H, K], keys and values of the key/value heads, decay and gate."""
        q, k, v = self.activate(self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states))
        q = torch.unflatten(q, -1, (self.num_heads, self.key_dim))
        k = torch.unflatten(k, -1, (self.num_kv_heads, self.key_dim))
        v = torch.unflatten(v, -1, (self.num_kv_heads, self.value_dim))
        if positions is not None:
            q, k = self.embed_positions(q, positions), self.embed_positions(k, positions)
        gate = None if self.output_gate is None else self.g_proj(hidden_states)
        return Heads(q, k, v, self.log_decay(hidden_states), gate)

    def attend(self, heads: Heads, *, cache: StateCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """The recurrence; padding at the beginning of rows neither writes nor ages a state: [B, T, H, V]."""
        if cache is None:
            return self._run(heads, None, cu_seqlens)[0]
        tokens = heads.q.shape[1]
        real, before = cache.real(cache.length, cache.length + tokens), self._held(cache)
        if tokens == 1:
            out, state = self._step(heads, before)
        elif real is None:
            out, last = self._run(heads, before, None)
            state = cast("Tensor", last)
        else:
            out, state = self._run_padded(heads, before, real)
        if real is not None:
            out = torch.where(real[..., None, None], out, 0)
            state = torch.where(real[:, -1:, None, None], state, before)
        cache.update(tokens, state=self._kept(state))
        return out

    def _held(self, cache: StateCache) -> Tensor:
        """The state [B, H, K, V] of a cache."""
        return cache.states["state"]

    def _kept(self, state: Tensor) -> Tensor:
        """What a cache keeps of it."""
        return state

    def merge(self, out: Tensor, heads: Heads) -> Tensor:
        """Norm, gate and output projection: [B, T, H, V] to [B, T, C]."""
        normed: Tensor = self.g_norm(out.flatten(-2) if self.norm in _ALL_HEADS else out)
        normed = normed if self.norm in _ALL_HEADS else normed.flatten(-2)  # [B, T, H V]
        normed = normed.to(heads.q.dtype)  # what projections compute in; that of their weights may be an integer
        if self.output_gate is not None and heads.gate is not None:
            normed = normed * _GATES[self.output_gate](heads.gate)
        mixed: Tensor = self.o_proj(normed)
        return mixed

    def _new_cache(
        self, batch_size: int, max_length: int | None, device: torch.device, dtype: torch.dtype | None
    ) -> StateCache:
        sizes = {"state": (self.num_heads, *self.state_sizes)}
        return StateCache(batch_size, sizes, device=device, dtype=dtype)

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """Values of the symbols of the card's formulas for an input of that size."""
        tokens = torch.Size(space).numel()
        key_dim, value_dim = self.state_sizes
        return {"T": tokens, "H": self.num_heads, "K": key_dim, "V": value_dim}

    @property
    def state_sizes(self) -> tuple[int, int]:
        """Rows and columns of a head's state: features of a key, channels of a value (and one for the denominator)."""
        nothing = torch.empty(0, 1, 1, self.key_dim, device=self._device)
        if self.uses_positions:
            nothing = self.embed_positions(
                nothing.expand(0, 1, self.num_heads, self.key_dim),
                torch.zeros(1, dtype=torch.long, device=nothing.device),
            )
        if self.feature_map is not None:
            nothing = resolve_feature_map(self.feature_map)(nothing)
        return nothing.shape[-1], self.value_dim + (self.denominator is not None)

    def _add_options(self, qkv_bias: bool, qk_norm: bool) -> None:
        """Biases of queries, keys and values, drawn as those of any linear layer; norms of queries and keys."""
        for projection in (self.q_proj, self.k_proj, self.v_proj) if qkv_bias else ():
            projection.bias = nn.Parameter(projection.weight.new_empty(len(projection.weight)))
            projection.reset_parameters()
        if qk_norm:
            weight = self.q_proj.weight
            add_qk_norm(self, self.key_dim, device=weight.device, dtype=weight.dtype)

    def _new_norm(self, norm: Norm | None, **factory: Any) -> RMSNorm | LayerNorm | nn.Identity:
        if norm is None:
            return nn.Identity()
        if norm == "layer":
            return LayerNorm(self.value_dim)
        if norm in _ALL_HEADS:
            all_heads = self.value_dim * self.num_heads
            return RMSNorm(all_heads, eps=1e-6, elementwise_affine=norm == "rms-all-heads", **factory)
        return RMSNorm(self.value_dim, eps=1e-5, **factory)

    def _run(self, heads: Heads, state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Whole rows, from a state (the last state is then of use) or without a past."""
        past: dict[str, Any] = {
            "log_decay": heads.log_decay,
            "initial_state": state,
            "output_final_state": state is not None,
            "cu_seqlens": cu_seqlens,
        }
        q, k, v = (_summable(x) for x in heads[:3])
        if self._is_plain:
            out, last = linear_attention(q, k, v, scale=self.scale, **past)
        else:
            out, last = kernel_attention(q, k, v, feature_map=self.feature_map, denominator=self.denominator, **past)
            out = self._scaled(out)
        return out, last

    def _run_padded(self, heads: Heads, state: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The same of rows that begin with padding, which makes sequences of its own."""
        q, k, v = (x.flatten(0, 1)[None] for x in heads[:3])
        decay = heads.log_decay
        if decay is not None and decay.dim() > 1:
            decay = decay.flatten(0, 1)[None]
        states = torch.stack([torch.zeros_like(state), state], 1).flatten(0, 1)
        out, last = self._run(Heads(q, k, v, decay), states, bounds_of_padding(real))
        return torch.unflatten(out[0], 0, real.shape), cast("Tensor", last)[1::2]

    def _step(self, heads: Heads, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token of each row."""
        decay = heads.log_decay
        decay = decay[:, 0] if decay is not None and decay.dim() > 1 else decay
        q, k, v = (_summable(x[:, 0]) for x in heads[:3])
        if self._is_plain:
            out, state = linear_attention_step(q, k, v, state, log_decay=decay, scale=self.scale)
        else:
            out, state = kernel_attention_step(
                q, k, v, state, log_decay=decay, feature_map=self.feature_map, denominator=self.denominator
            )
            out = self._scaled(out)
        return out[:, None], state

    @property
    def is_average(self) -> bool:
        """Whether outputs of heads are averages of values, with weights that sum to 1."""
        return self.denominator is not None

    @property
    def _is_plain(self) -> bool:
        return self.feature_map is None and self.denominator is None

    def _scaled(self, out: Tensor) -> Tensor:
        """The output of features times the scale; without one, K ** -0.5 unless a denominator divides."""
        scale = self.scale
        if scale is None:
            scale = self.key_dim**-0.5 if self.denominator is None else 1.0
        return out if scale == 1.0 else out * scale


_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": F.silu,
    "sigmoid": torch.sigmoid,
    "linear": lambda gate: gate,
}


def _summable(x: Tensor) -> Tensor:
    """float16 as float32: sums over tokens leave its range (65,504) long before the norm brings them back.

    The output is then float32, too, so that queries, keys, values and outputs take twice the memory.
    """
    return x.float() if x.dtype == torch.float16 else x


def _feature_map(owner: str, feature_map: FeatureMap | None, key_dim: int, **factory: Any) -> FeatureMap | None:
    """A name, function or module that `linear_attention` takes."""
    if feature_map == "positive-random":
        return RandomFeatures(key_dim, **factory)
    if feature_map == "learned":
        return LearnedFeatures(key_dim, **factory)
    if feature_map is not None:
        resolve_feature_map(feature_map, owner)
    return feature_map
