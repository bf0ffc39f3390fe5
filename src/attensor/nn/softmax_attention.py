"""Softmax attention as a layer: projections, rotary positions, grouped key/value heads, decode cache."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from attensor.errors import ShapeError
from attensor.nn._carried import accepted, carry, given, refuse_qk_norm
from attensor.nn._shapes import check_range, kv_heads
from attensor.nn._shapes import head_dim as width_of
from attensor.nn.attention_weights import AttentionWeights
from attensor.nn.cache import TokenCache
from attensor.nn.mixer import Heads, SequenceMixer
from attensor.nn.norm import add_qk_norm, qk_normed
from attensor.nn.rotary import rotary_embedding
from attensor.ops import softmax_attention
from attensor.ops._checks import check_devices, check_tensor

__all__ = ["SoftmaxAttention"]


class SoftmaxAttention(SequenceMixer):
    """Every token attends to every token (before it, when causal).

    Cost O(T^2 C); decoding keeps all keys and values. Keys of the state_dict: `{q,k,v,o}_proj.weight`, and `.bias`;
    `{q,k}_norm.weight`.

    Args:
        hidden_size: channels C of input and output.
        num_heads: query heads H.
        num_kv_heads: key/value heads, a divisor of H (grouped queries); H if None.
        head_dim: channels of a head; C / H if None.
        is_causal: a token sees itself and what comes before it; space is read row by row.
        rotary_base: base of the rotary positions (`rotary_embedding`); None for no positions.
        qkv_bias: add a learned number to each channel of queries, keys and values.
        out_bias: the same for the output projection.
        qk_norm: divide each query and key by its root mean square, times learned numbers, before positions (Qwen3).
        dropout_p: probability of dropping an attention weight in training.
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels, rotary positions with an odd head width, a number out of range.
    Source: arXiv:1706.03762, section 3.2.2; rotary positions arXiv:2104.09864; norms arXiv:2302.05442.
    """

    ranks = (3, 4, 5)
    reads_in_any_order = True
    window_size: int | None = None  # tokens that a cache keeps; all if None
    shown: tuple[str, ...] = ("hidden_size", "num_heads", "num_kv_heads", "is_causal", "rotary_base")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        is_causal: bool = True,
        rotary_base: float | None = 10_000.0,
        qkv_bias: bool = False,
        out_bias: bool = False,
        qk_norm: bool = False,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_heads = hidden_size, num_heads
        check_range(self, 1, hidden_size=hidden_size, num_heads=num_heads, head_dim=head_dim)
        self.head_dim = width_of(self, hidden_size, num_heads) if head_dim is None else int(head_dim)
        self.num_kv_heads = kv_heads(self, num_heads, num_kv_heads)
        if rotary_base is not None and self.head_dim % 2:
            found = f"head_dim {head_dim}" if head_dim else f"hidden_size {hidden_size} / num_heads {num_heads}"
            raise ValueError(
                f"{type(self).__name__}: rotary positions need an even head width, got {found} = {self.head_dim}; "
                "change them or set rotary_base=None."
            )
        check_range(self, 0, 1, dropout_p=dropout_p)
        check_range(self, above=0, rotary_base=rotary_base)
        self.is_causal, self.rotary_base, self.dropout_p = is_causal, rotary_base, dropout_p
        self.uses_positions = rotary_base is not None
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self._make_projections(qkv_bias, out_bias, made)
        if qk_norm:
            add_qk_norm(self, self.head_dim, **made)

    def _make_projections(self, qkv_bias: bool, out_bias: bool, made: dict[str, Any]) -> None:
        size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(self.hidden_size, size, bias=qkv_bias, **made)
        self.k_proj = nn.Linear(self.hidden_size, kv_size, bias=qkv_bias, **made)
        self.v_proj = nn.Linear(self.hidden_size, kv_size, bias=qkv_bias, **made)
        self.o_proj = nn.Linear(size, self.hidden_size, bias=out_bias, **made)

    @classmethod
    def from_attention(cls, weights: AttentionWeights, **options: Any) -> Self:
        """A layer with the projections of a trained attention, of which it computes the same where nothing is changed.

        Args:
            weights: of the attention.
            options: of the constructor; what they leave out is the attention's.
        Raises:
            ShapeError, ValueError: options that ask for other sizes, or that the layer cannot have.
        """
        layer = cls(weights.q.shape[1], weights.num_heads, **{**cls._options_of(weights), **options})
        for name, projection in layer._parts_carried().items():
            carry(layer, name, projection, getattr(weights, name), getattr(weights, f"{name}_bias"))
        return layer

    @classmethod
    def _options_of(cls, weights: AttentionWeights) -> dict[str, Any]:
        return accepted(
            cls,
            num_kv_heads=weights.num_kv_heads,
            head_dim=weights.head_dim,
            rotary_base=weights.rotary_base,
            is_causal=weights.is_causal,
            qkv_bias=any(bias is not None for bias in (weights.q_bias, weights.k_bias, weights.v_bias)),
            out_bias=weights.out_bias is not None,
            device=weights.q.device,
            dtype=weights.q.dtype,
        )

    def to_attention(self) -> AttentionWeights:
        """The projections, for another attention; they share this layer's memory.

        Raises:
            ValueError: a layer with `qk_norm`, of which projections do not say all.
        """
        refuse_qk_norm(self)
        tensors: dict[str, Any] = given(**self._parts_carried())
        return AttentionWeights(
            **tensors,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            rotary_base=self.rotary_base,
            is_causal=self.is_causal,
            window_size=self.window_size,
        )

    def _parts_carried(self) -> dict[str, nn.Linear]:
        return {"q": self.q_proj, "k": self.k_proj, "v": self.v_proj, "out": self.o_proj}

    def forward(
        self,
        hidden_states: Tensor,
        *,
        cache: Any = None,
        cu_seqlens: Tensor | None = None,
        qk_source: Tensor | None = None,
    ) -> Tensor:
        """Mix the tokens.

        Args:
            hidden_states, cache, cu_seqlens: see `SequenceMixer.forward`.
            qk_source: as hidden_states, or one row for all, what queries and keys are made of in their place; with one
                row for all the attention is computed once.
        Returns:
            As `hidden_states`.
        Raises:
            ShapeError, TypeError, ValueError: see `SequenceMixer.forward`; a source of other sizes or elsewhere.
        """
        positions = self._accepted(hidden_states, cache, cu_seqlens)
        if qk_source is None:
            heads = self.project(hidden_states, positions)
        else:
            heads = self._project_apart(hidden_states, qk_source, positions)
        return self.merge(self.attend(heads, cache=cache, cu_seqlens=cu_seqlens), heads).view(hidden_states.shape)

    def _project_apart(self, hidden_states: Tensor, qk_source: Tensor, positions: Tensor | None) -> Heads:
        """Queries and keys of one stream, values of the other; of a shared stream in one row."""
        name, rows = type(self).__name__, hidden_states.shape[0]
        check_tensor(name, "qk_source", qk_source)
        if qk_source.shape[1:] != hidden_states.shape[1:] or qk_source.shape[0] not in (1, rows):
            raise ShapeError(
                f"{name}: qk_source must be {list(hidden_states.shape)} as hidden_states, or [1, ..] of one row for "
                f"all, got {list(qk_source.shape)}; give one vector for each token."
            )
        check_devices(name, hidden_states, "hidden_states", qk_source=qk_source)
        if positions is not None and positions.dim() == 2:  # rows begin at places of their own
            qk_source = qk_source.expand_as(hidden_states)
        v = self.v_proj(hidden_states.flatten(1, -2)).unflatten(-1, (self.num_kv_heads, self.head_dim))
        return self.project(qk_source, positions)._replace(v=v)

    def project(self, hidden_states: Tensor, positions: Tensor | None = None) -> Heads:
        """[B, *space, C] to queries [B, T, H, K], keys and values of the key/value heads."""
        tokens = hidden_states.flatten(1, -2)
        q = self.q_proj(tokens).unflatten(-1, (self.num_heads, self.head_dim))  # [B, T, H, K]
        k = self.k_proj(tokens).unflatten(-1, (self.num_kv_heads, self.head_dim))
        v = self.v_proj(tokens).unflatten(-1, (self.num_kv_heads, self.head_dim))
        q, k = qk_normed(self, q, k)
        if self.rotary_base is not None and positions is not None:
            q = rotary_embedding(q, positions, base=self.rotary_base)
            k = rotary_embedding(k, positions, base=self.rotary_base)
        return Heads(q, k, v)

    def attend(self, heads: Heads, *, cache: TokenCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Softmax attention over the tokens and what the cache holds, padding left out: [B, T, H, K]."""
        rows, is_shared = heads.v.shape[0], heads.q.shape[0] < heads.v.shape[0]
        if is_shared and cache is None:  # one map for all rows: their values side by side
            heads = heads._replace(v=heads.v.permute(1, 2, 0, 3).flatten(2)[None])
        elif is_shared:
            heads = heads._replace(q=heads.q.expand(rows, -1, -1, -1), k=heads.k.expand(rows, -1, -1, -1))
        k, v, mask = self._visible(heads, cache)
        out: Tensor = softmax_attention(
            heads.q,
            k,
            v,
            is_causal=self.is_causal,
            attn_mask=mask,
            dropout_p=self.dropout_p if self.training else 0.0,
            cu_seqlens=cu_seqlens,
        )
        return torch.unflatten(out[0], -1, (rows, -1)).permute(2, 0, 1, 3) if is_shared and cache is None else out

    def _visible(self, heads: Heads, cache: TokenCache | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values with those that the cache holds, and which of them are no padding: [B, 1, 1, tokens]."""
        if cache is None:
            return heads.k, heads.v, None
        k, v = cache.append(keys=heads.k, values=heads.v).values()
        real = cache.real(cache.length - k.shape[1], cache.length)
        return k, v, None if real is None else real[:, None, None]

    def merge(self, out: Tensor, heads: Heads) -> Tensor:
        """Output projection: [B, T, H, K] to [B, T, C]."""
        mixed: Tensor = self.o_proj(out.flatten(-2))
        return mixed

    def _new_cache(
        self, batch_size: int, max_length: int | None, device: torch.device, dtype: torch.dtype | None
    ) -> TokenCache:
        return TokenCache(
            batch_size,
            dict.fromkeys(("keys", "values"), (self.num_kv_heads, self.head_dim)),
            windows=self.window_size,
            max_length=max_length,
            device=device,
            dtype=dtype,
        )
