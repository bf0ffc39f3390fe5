"""Attention of TransNeXt: by cosines, to all cells, or to neighbours and a pooled map at once; heads may be routed.

    s_ij = (q_i / |q_i| + e) softplus(t) log(n_i) . k_j / |k_j| + b_ij        n_i keys that cell i sees

Sizes: B images, C channels, H heads, D = C / H channels of a head.
Source: arXiv:2311.17132, section 3; routed: arXiv:2410.11842.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn._shapes import check_range, head_dim
from attensor.nn.continuous_bias import ContinuousBias
from attensor.nn.head_router import HeadRouter, check_counts
from attensor.nn.mixer import Heads, Mixer
from attensor.ops import merge_attention, neighborhood_attention, routed_attention, softmax_attention

__all__ = ["AggregatedAttention", "CosineAttention"]

_WINDOW = 3


class CosineAttention(Mixer):
    """Every cell of a map sees all cells, by cosines whose sharpness grows with the logarithm of their number.

    Cost O(cells^2 C). Keys of the state_dict: `qkv.*` (rows q, k, v, each by head), `proj.*`, `query_embedding`,
    `temperature`, `bias.{fc1,fc2}.*` and, routed, `router.{wg,wg_0,wg_1}.weight`.

    Args:
        hidden_size: channels C.
        num_heads: heads H.
        trained_space: rows and columns of the map that position biases are measured by; see `ContinuousBias`.
        num_shared, num_active: heads that are always on, and that are on for a cell, shared ones included; see
            `HeadRouter`. Without them no head is routed.
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels, or as `HeadRouter`.
    Source: arXiv:2311.17132, section 3.3 ("length-scaled cosine attention").
    """

    ranks = (4,)

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        trained_space: tuple[int, int] | None = None,
        num_shared: int | None = None,
        num_active: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.head_dim = head_dim(self, hidden_size, num_heads)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self._make_projections(made)
        self.query_embedding = nn.Parameter(torch.empty(num_heads, self.head_dim, **made))
        self.temperature = nn.Parameter(torch.empty(num_heads, **made))
        self.bias = ContinuousBias(num_heads, trained_space=trained_space, **made)
        self.router: HeadRouter | None = None
        check_range(self, 0, num_shared=num_shared)
        check_range(self, 1, num_active=num_active, trained_space=trained_space)
        if num_active is None and num_shared is not None:
            raise ValueError(
                f"{type(self).__name__}: num_shared must be None where num_active is, got {num_shared}; say how many "
                "heads are on for a cell."
            )
        if num_active is not None:
            shared = 0 if num_shared is None else num_shared
            check_counts(self, num_heads, shared, num_active)
            self.router = HeadRouter(hidden_size, num_heads, num_shared=shared, num_active=num_active, **made)
        self.reset_own_parameters()

    def _make_projections(self, made: dict[str, Any]) -> None:
        self.qkv = nn.Linear(self.hidden_size, 3 * self.hidden_size, **made)
        self.proj = nn.Linear(self.hidden_size, self.hidden_size, **made)

    def reset_own_parameters(self) -> None:
        """Truncated normal of 0.02 for the embedding; softplus of the temperature is 1 / 0.24."""
        nn.init.trunc_normal_(self.query_embedding, std=0.02)
        nn.init.constant_(self.temperature, math.log(math.expm1(1 / 0.24)))

    def no_weight_decay(self) -> set[str]:
        """As the authors train them."""
        biases = {f"bias.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")}
        return {"query_embedding", "temperature", *biases}

    def project(self, hidden_states: Tensor) -> Heads:
        """[B, rows, columns, C] to queries and keys of length 1, values [B, rows, columns, H, D], and the gates."""
        q, k, v = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return Heads(q, k, v, gate=None if self.router is None else self.router(hidden_states, q))

    def attend(self, heads: Heads) -> Tensor:
        """[B, rows, columns, H, D], times the gates."""
        space = (heads.q.shape[1], heads.q.shape[2])
        q = self._scaled(heads.q, math.log(math.prod(space))).flatten(1, 2)
        k, v = heads.k.flatten(1, 2), heads.v.flatten(1, 2)
        bias = self.bias(space, space)[None].to(q.dtype)
        if heads.gate is None:
            out: Tensor = softmax_attention(q, k, v, scale=1.0, attn_mask=bias)
        else:
            out = routed_attention(q, k, v, heads.gate.flatten(1, 2), scale=1.0, attn_mask=bias)
        return torch.unflatten(out, 1, space)

    def merge(self, out: Tensor, heads: Heads) -> Tensor:
        """Output projection: [B, rows, columns, H, D] to [B, rows, columns, C]."""
        mixed: Tensor = self.proj(out.flatten(-2))
        return mixed

    def _scaled(self, q: Tensor, log_count: float | Tensor) -> Tensor:
        scaled: Tensor = (q + self.query_embedding) * F.softplus(self.temperature)[:, None] * log_count
        return scaled.to(q.dtype)


class AggregatedAttention(CosineAttention):
    """Every cell sees the 3 x 3 around it and a pooled map in one softmax, and nine neighbours by learned weights.

    Cost O(cells (9 + cells / reduction^2) C). Keys of the state_dict: `q.*`, `kv.*` (rows k, v), `proj.*`, `sr.*` and
    `norm.*` (what is pooled), `query_embedding`, `temperature`, `bias.{fc1,fc2}.*`, `relative_pos_bias_local` [H, 9],
    `learnable_tokens` [H, D, 9], `learnable_bias` [H, 9] and, routed, `router.{wg,wg_0,wg_1}.weight`.

    Gates multiply here; unlike in `CosineAttention` no head is left out. A cell has 9 neighbours and some 49 pooled
    keys, so that these are 4 % of a model's operations, of which the published routers could spare 0.4 % of
    moh_vit_s_75's and 0.8 % of moh_vit_b_50's. Gathering the chosen rows costs more than it saves: on a CPU 1.6 and
    1.5 times the time of all rows in their third stages, 1.03 times in the second of moh_vit_b_50.

    Args:
        hidden_size: channels C.
        num_heads: heads H.
        reduction: cells along a side that are pooled to one key; a map smaller than that has one.
        trained_space, num_shared, num_active, device, dtype: as in `CosineAttention`.
    Raises:
        ValueError: as `CosineAttention`, or a reduction below 1.
    Source: arXiv:2311.17132, sections 3.1 and 3.2.
    """

    shown = (*CosineAttention.shown, "reduction")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        reduction: int = 2,
        trained_space: tuple[int, int] | None = None,
        num_shared: int | None = None,
        num_active: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            hidden_size,
            num_heads,
            trained_space=trained_space,
            num_shared=num_shared,
            num_active=num_active,
            device=device,
            dtype=dtype,
        )
        check_range(self, 1, reduction=reduction)
        self.reduction = reduction

    def _make_projections(self, made: dict[str, Any]) -> None:
        size, window = self.hidden_size, _WINDOW**2
        self.q, self.kv = nn.Linear(size, size, **made), nn.Linear(size, 2 * size, **made)
        self.proj, self.sr = nn.Linear(size, size, **made), nn.Conv2d(size, size, 1, **made)
        self.norm = nn.LayerNorm(size, **made)
        self.relative_pos_bias_local = nn.Parameter(torch.empty(self.num_heads, window, **made))
        self.learnable_tokens = nn.Parameter(torch.empty(self.num_heads, self.head_dim, window, **made))
        self.learnable_bias = nn.Parameter(torch.empty(self.num_heads, window, **made))

    def reset_own_parameters(self) -> None:
        """As `CosineAttention`; biases of neighbours truncated normal of 0.0004, their tokens of 0.02, or zero."""
        super().reset_own_parameters()
        nn.init.trunc_normal_(self.relative_pos_bias_local, std=0.0004)
        nn.init.trunc_normal_(self.learnable_tokens, std=0.02)
        nn.init.zeros_(self.learnable_bias)

    def no_weight_decay(self) -> set[str]:
        """As the authors train them."""
        return {*super().no_weight_decay(), "relative_pos_bias_local"}

    def project(self, hidden_states: Tensor) -> Heads:
        """[B, rows, columns, C] to queries [B, rows, columns, H, D], keys and values of cells and of the pooled map.

        Keys and values are [B, cells + pooled, H, D], those of the cells first; queries and keys have length 1.
        """
        q = F.normalize(self.q(hidden_states).unflatten(-1, (self.num_heads, self.head_dim)), dim=-1)
        seen = torch.cat([hidden_states.flatten(1, 2), self._pooled(hidden_states)], 1)
        k, v = self.kv(seen).unflatten(-1, (2, self.num_heads, self.head_dim)).unbind(-3)
        gate = None if self.router is None else self.router(hidden_states, q)
        return Heads(q, F.normalize(k, dim=-1), v, gate=gate)

    def attend(self, heads: Heads) -> Tensor:
        """[B, rows, columns, H, D], times the gates."""
        space = (heads.q.shape[1], heads.q.shape[2])
        parts = [math.prod(space), math.prod(self._pooled_space(space))]
        (k, pooled_k), (v, pooled_v) = (torch.split(x, parts, 1) for x in (heads.k, heads.v))
        k, v = (torch.unflatten(x, 1, space) for x in (k, v))
        q = self._scaled(heads.q, self._log_counts(space, heads.q))
        near, near_lse = neighborhood_attention(
            q,
            k,
            v,
            window_size=_WINDOW,
            border="truncate",
            scale=1.0,
            relative_bias=F.pad(self.relative_pos_bias_local.view(-1, _WINDOW, _WINDOW), (1, 1, 1, 1)),
            return_lse=True,
        )
        bias = self.bias(space, self._pooled_space(space))[None].to(q.dtype)
        far, far_lse = softmax_attention(
            q.flatten(1, 2), pooled_k, pooled_v, scale=1.0, attn_mask=bias, return_lse=True
        )
        out, _ = merge_attention([near.flatten(1, 2), far], [near_lse.flatten(1, 2), far_lse])
        out = torch.unflatten(out, 1, space) + self._neighbours(heads.q, v)
        return out if heads.gate is None else out * heads.gate[..., None].to(out.dtype)

    def _pooled(self, hidden_states: Tensor) -> Tensor:
        """What pooled keys and values are made of, [B, pooled, C]."""
        space = (hidden_states.shape[1], hidden_states.shape[2])
        mixed = F.gelu(self.sr(hidden_states.movedim(-1, 1)))
        pooled: Tensor = self.norm(F.adaptive_avg_pool2d(mixed, self._pooled_space(space)).flatten(2).mT)
        return pooled

    def _pooled_space(self, space: tuple[int, int]) -> tuple[int, int]:
        return max(1, space[0] // self.reduction), max(1, space[1] // self.reduction)

    def _log_counts(self, space: tuple[int, int], like: Tensor) -> Tensor:
        """Of the keys that each cell sees, [rows, columns, 1, 1]."""
        axes = []
        for cells in space:
            place = torch.arange(cells, device=like.device)
            axes.append(1 + (place > 0).to(like.dtype) + (place < cells - 1).to(like.dtype))
        counts = axes[0][:, None] * axes[1] + math.prod(self._pooled_space(space))
        return counts.log()[..., None, None]

    def _neighbours(self, q: Tensor, v: Tensor) -> Tensor:
        """The nine values around each cell, zeros beyond the map, with coefficients linear in its query."""
        factors = torch.einsum("brchd,hdn->brchn", q, self.learnable_tokens) + self.learnable_bias
        padded = F.pad(v, (0, 0, 0, 0, 1, 1, 1, 1))
        total = torch.zeros_like(v)
        for place in range(_WINDOW**2):
            down, right = divmod(place, _WINDOW)
            there = padded[:, down : down + q.shape[1], right : right + q.shape[2]]
            total = total + factors[..., place : place + 1].to(v.dtype) * there
        return total
