"""Gated DeltaNet: a layer whose state is corrected towards each value, after short convolutions."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn._carried import carry_repeated, given_repeated, refuse_bidirectional
from attensor.nn._shapes import check_range, half
from attensor.nn._shapes import head_dim as width_of
from attensor.nn.attention_weights import AttentionWeights
from attensor.nn.cache import StateCache
from attensor.nn.mixer import Heads, SequenceMixer
from attensor.nn.norm import RMSNorm
from attensor.nn.rotary import token_positions
from attensor.nn.short_convolution import ShortConvolution, convolved
from attensor.ops import gated_delta_rule

__all__ = ["GatedDeltaNet"]

_EPS = 1e-6  # added to squared lengths of queries and keys


class GatedDeltaNet(SequenceMixer):
    """Linear attention that forgets by a gate per head, and corrects what its state says of a key.

    Queries, keys and values pass a short causal convolution and SiLU; queries and keys then have length 1;
    `beta = sigmoid(W_b x)`, `log decay = -exp(A) softplus(W_a x + b)`. A norm per head and a swish gate follow. All but
    projections is computed in at least float32.
    Cost O(T (chunk + K) V) per head; decoding keeps one [K, V] matrix per head and the last conv_size - 1 inputs.
    Keys of the state_dict are those of flash-linear-attention's layer, whose `num_v_heads` is `num_heads` here, whose
    `num_heads` is `num_qk_heads`, and whose `norm_eps` is `o_norm.eps`, 1e-5 at first.

    Args:
        hidden_size: channels C.
        num_heads: heads H of values, states and outputs.
        num_qk_heads: heads of queries and keys, a divisor of H: each serves H / num_qk_heads neighbours; H if None.
        head_dim: width K of a query and key; C / 2 H if None.
        expand_v: width V of a value is head_dim * expand_v.
        use_gate: a swish gate, made of the input, multiplies the normed output.
        conv_size: tokens that a convolution reads, the current one included; None for no convolution.
        conv_bias: convolutions have a bias.
        allow_neg_eigval: beta is in (0, 2) and not (0, 1), so that a correction can also reflect.
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels or each other; expand_v makes no whole number of channels.
    Source: arXiv:2412.06464, section 3.4; negative eigenvalues: arXiv:2411.12537.
    """

    _carried_kv_heads: int | None = None  # of the attention that it was made from
    shown = ("hidden_size", "num_heads", "num_qk_heads", "key_dim", "value_dim", "conv_size", "allow_neg_eigval")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_qk_heads: int | None = None,
        head_dim: int | None = None,
        expand_v: float = 2.0,
        use_gate: bool = True,
        conv_size: int | None = 4,
        conv_bias: bool = False,
        allow_neg_eigval: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.num_qk_heads = num_heads if num_qk_heads is None else num_qk_heads
        self.key_dim, self.value_dim = self._widths(head_dim, expand_v)
        check_range(self, 1, conv_size=conv_size)
        self.conv_size, self.allow_neg_eigval = conv_size, allow_neg_eigval
        of_keys, _, of_values = self._sizes
        made: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        self.q_proj = nn.Linear(hidden_size, of_keys, **made)
        self.k_proj = nn.Linear(hidden_size, of_keys, **made)
        self.v_proj = nn.Linear(hidden_size, of_values, **made)
        if conv_size is not None:
            conv_made = {**made, "bias": conv_bias}
            self.q_conv1d = ShortConvolution(of_keys, conv_size, **conv_made)
            self.k_conv1d = ShortConvolution(of_keys, conv_size, **conv_made)
            self.v_conv1d = ShortConvolution(of_values, conv_size, **conv_made)
        self.a_proj = nn.Linear(hidden_size, num_heads, **made)
        self.b_proj = nn.Linear(hidden_size, num_heads, **made)
        self.A_log = nn.Parameter(torch.empty(num_heads, device=device, dtype=dtype))
        self.dt_bias = nn.Parameter(torch.empty(num_heads, device=device, dtype=dtype))
        self.g_proj = nn.Linear(hidden_size, of_values, **made) if use_gate else None
        self.o_norm = RMSNorm(self.value_dim, eps=1e-5, device=device, dtype=dtype)
        self.o_proj = nn.Linear(of_values, hidden_size, **made)
        self.reset_own_parameters()

    @classmethod
    def from_attention(cls, weights: AttentionWeights, **options: Any) -> Self:
        """A layer with the projections of a trained causal attention; gates and decays are drawn anew.

        Convolutions begin as the identity. Key/value heads are repeated for all heads, wider values are copies whose
        outputs are averaged; rotary positions have no place here. Only a layer that is trained on gives what the
        attention gave.

        Args:
            weights: of the attention.
            options: of the constructor; `head_dim` is the attention's and `expand_v` 1 where they do not say otherwise.
        Raises:
            ShapeError, ValueError: sizes that the layer cannot have, or attention that sees the future.
        """
        refuse_bidirectional(cls, weights.is_causal)
        own: dict[str, Any] = {"head_dim": weights.head_dim, "expand_v": 1.0}
        own |= {"device": weights.q.device, "dtype": weights.q.dtype}
        layer = cls(weights.q.shape[1], weights.num_heads, **{**own, **options})
        layer._carried_kv_heads = weights.num_kv_heads
        carry_repeated(layer, weights, layer.num_qk_heads, layer.num_heads, layer.value_dim)
        with torch.no_grad():
            for name in ("q_conv1d", "k_conv1d", "v_conv1d") if layer.conv_size else ():
                layer.get_submodule(name).weight.zero_()[..., -1] = 1.0  # type: ignore[operator]
        return layer

    def to_attention(self) -> AttentionWeights:
        """The projections, for a softmax attention; bit for bit those of `from_attention` until they are trained.

        Raises:
            ValueError: values whose width is no multiple of the keys', or fewer heads of queries than of values.
        """
        times, rest = divmod(self.value_dim, self.key_dim)
        if rest or self.num_qk_heads != self.num_heads:
            raise ValueError(
                f"{type(self).__name__}.to_attention: value_dim must be a multiple of key_dim and num_qk_heads be "
                f"num_heads for softmax attention, got {self.value_dim} of {self.key_dim} and {self.num_qk_heads} of "
                f"{self.num_heads} heads; keep the layer, or swap with fresh weights."
            )
        shared = self._carried_kv_heads or self.num_heads
        tensors: dict[str, Any] = given_repeated(self, shared, self.num_heads, self.num_heads, times)
        return AttentionWeights(
            **tensors,
            num_heads=self.num_heads,
            num_kv_heads=shared,
            head_dim=self.key_dim,
            rotary_base=None,
            is_causal=True,
        )

    def reset_own_parameters(self) -> None:
        """Draw decays as Mamba does: rates of 0 to 16 at time steps of 0.001 to 0.1."""
        with torch.no_grad():
            self.A_log.copy_(torch.empty_like(self.A_log, dtype=torch.float32).uniform_(1e-3, 16).log_())
            steps = torch.empty_like(self.dt_bias, dtype=torch.float32).uniform_(math.log(1e-3), math.log(0.1)).exp_()
            self.dt_bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # softplus gives the step again

    def log_decay(self, hidden_states: Tensor) -> Tensor:
        """One for each head: [B, T, H], in at least float32."""
        step = _wide(self.a_proj(hidden_states))
        return -self.A_log.to(step.dtype).exp() * F.softplus(step + self.dt_bias.to(step.dtype))

    def project(self, hidden_states: Tensor, positions: Tensor | None = None) -> Heads:
        """[B, T, C] to queries, keys and values before their convolutions, decay, gate and beta."""
        q, k = (
            torch.unflatten(proj(hidden_states), -1, (self.num_qk_heads, self.key_dim))
            for proj in (self.q_proj, self.k_proj)
        )
        v = torch.unflatten(self.v_proj(hidden_states), -1, (self.num_heads, self.value_dim))
        gate = None if self.g_proj is None else self.g_proj(hidden_states)
        beta = (2.0 if self.allow_neg_eigval else 1.0) * torch.sigmoid(_wide(self.b_proj(hidden_states)))
        return Heads(q, k, v, self.log_decay(hidden_states), gate, beta)

    def attend(self, heads: Heads, *, cache: StateCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """The recurrence; padding at the beginning of rows neither writes nor ages a state: [B, T, H, V]."""
        tokens, decay, beta = heads.q.shape[1], heads.log_decay, heads.beta
        if decay is None or beta is None:
            raise TypeError("GatedDeltaNet.attend: heads must come from project, with log_decay and beta; call it.")
        inputs = _wide(torch.cat([x.flatten(2) for x in heads[:3]], -1))  # [B, T, channels]
        real = None if cache is None else cache.real(cache.length, cache.length + tokens)
        if real is not None:
            inputs, beta, decay = (torch.where(real[..., None], x, 0.0) for x in (inputs, beta, decay))
        mixed, recent = self._convolved(inputs, cache, cu_seqlens)
        q, k, v = torch.split(F.silu(mixed), self._sizes, -1)
        q, k = (self._of_length_one(x) for x in (q, k))
        out, state = gated_delta_rule(
            q,
            k,
            torch.unflatten(v, -1, (self.num_heads, self.value_dim)),
            beta.to(q.dtype),
            log_decay=decay,
            initial_state=None if cache is None else cache.states["state"],
            output_final_state=cache is not None,
            cu_seqlens=cu_seqlens,
        )
        if cache is not None and state is not None:
            cache.update(tokens, state=state, inputs=recent)
        return out

    def merge(self, out: Tensor, heads: Heads) -> Tensor:
        """Norm, gate and output projection: [B, T, H, V] to [B, T, C]."""
        normed = self.o_norm(out).flatten(-2)
        if heads.gate is not None:
            normed = normed * F.silu(heads.gate.to(normed.dtype))
        mixed: Tensor = self.o_proj(normed.to(heads.q.dtype))
        return mixed

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """Values of the symbols of the card's formulas for an input of that size."""
        sizes = {"T": torch.Size(space).numel(), "H": self.num_heads, "K": self.key_dim, "V": self.value_dim}
        return {**sizes, "J": self.num_qk_heads, "W": self.conv_size or 1}

    @property
    def _sizes(self) -> list[int]:
        """Channels of all queries, keys and values."""
        of_keys = self.num_qk_heads * self.key_dim
        return [of_keys, of_keys, self.num_heads * self.value_dim]

    def _widths(self, head_dim: int | None, expand_v: float) -> tuple[int, int]:
        """K and V."""
        name, heads = type(self).__name__, self.num_heads
        check_range(self, 1, hidden_size=self.hidden_size, num_heads=heads, num_qk_heads=self.num_qk_heads)
        check_range(self, 1, head_dim=head_dim)
        check_range(self, above=0, expand_v=expand_v)
        if heads % self.num_qk_heads:
            raise ValueError(
                f"{name}: num_qk_heads {self.num_qk_heads} does not divide num_heads {heads}; each head of queries and "
                "keys serves the same number of values."
            )
        if head_dim is None:
            width_of(self, self.hidden_size, heads)
            head_dim = half(self, self.hidden_size, heads) // heads
        value_dim = round(head_dim * expand_v)
        if value_dim < 1 or not math.isclose(value_dim, head_dim * expand_v, rel_tol=1e-5):
            raise ValueError(
                f"{name}: expand_v must be a multiple of 1 / {head_dim}, so that a value has a whole number of "
                f"channels, head_dim * expand_v, got {expand_v}; choose another expand_v or head_dim."
            )
        return int(head_dim), value_dim

    def _convolved(self, inputs: Tensor, cache: StateCache | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Each channel's weighted last tokens of its own sequence, [B, T, channels], and what comes next needs."""
        reach = (self.conv_size or 1) - 1
        if self.conv_size is None:
            return inputs, inputs[:, :0]
        past = inputs.new_zeros(inputs.shape[0], reach, inputs.shape[2])
        if cache is not None:
            past = cache.states["inputs"].to(inputs.dtype)
        place = None
        if cu_seqlens is not None:
            place = token_positions(inputs.shape[1], cu_seqlens=cu_seqlens, device=inputs.device)
        mixed = convolved(inputs, past, (self.q_conv1d, self.k_conv1d, self.v_conv1d), place)
        return mixed, torch.cat([past, inputs], 1)[:, inputs.shape[1] :]

    def _of_length_one(self, x: Tensor) -> Tensor:
        """Queries or keys [B, T, channels] by head, each for as many neighbouring values as it serves: [B, T, H, K]."""
        x = torch.unflatten(x, -1, (self.num_qk_heads, self.key_dim))
        x = x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _EPS)
        return x if self.num_qk_heads == self.num_heads else x.repeat_interleave(self.num_heads // self.num_qk_heads, 2)

    def _new_cache(
        self, batch_size: int, max_length: int | None, device: torch.device, dtype: torch.dtype | None
    ) -> StateCache:
        sizes = {
            "state": (self.num_heads, self.key_dim, self.value_dim),
            "inputs": ((self.conv_size or 1) - 1, sum(self._sizes)),
        }
        return StateCache(batch_size, sizes, device=device, dtype=dtype)


def _wide(x: Tensor) -> Tensor:
    """In at least float32: what corrections and recurrences are made of feels every rounding."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
