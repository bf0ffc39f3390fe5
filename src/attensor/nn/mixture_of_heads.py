"""Mixture of heads: softmax attention in which every token asks some of the heads, and weighs what they say."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from attensor.nn._shapes import check_range
from attensor.nn.attention_weights import AttentionWeights
from attensor.nn.cache import TokenCache
from attensor.nn.head_router import HeadRouter, check_counts
from attensor.nn.mixer import Heads
from attensor.nn.softmax_attention import SoftmaxAttention
from attensor.ops import routed_attention, softmax_attention

__all__ = ["MixtureOfHeads"]


class MixtureOfHeads(SoftmaxAttention):
    """Some heads serve all tokens, of the others each token chooses the best; what nobody chose is not computed.

    Every token gives keys and values to every head: only queries are routed. Parameters and cache are those of
    `SoftmaxAttention` and a router; attention costs the share of active heads. Keys of the state_dict:
    `{q,k,v,o}_proj.*`, `router.{wg,wg_0,wg_1}.weight`. Train with `load_balance_loss` added to the loss.
    `from_attention` begins with `router="query-norm"` and `gate_scale="hard"`, where options do not say otherwise.

    Args:
        hidden_size: channels C of input and output.
        num_heads: query heads H.
        num_shared: the first heads, that are always on: how many, or a share of H below 1; half of H, but one less than
            are active at most, if None.
        num_active: heads that are on for a token, the shared ones included: how many, or a share of H below 1.
        router: `"linear"`, or `"query-norm"`, which has no parameters; see `HeadRouter`.
        gate_scale: how active heads are weighed: `"code"` (as in the published models), `"paper"` (as in its equations,
            which shrinks the output) or `"hard"` (all 1, for layers that were trained with all heads).
        straight_through: with hard gates, whose gradients routers learn from: of `"all"` heads or of the `"chosen"`.
        attention: `num_kv_heads`, `head_dim`, `is_causal`, `rotary_base`, `qkv_bias`, `out_bias`, `device` and `dtype`
            of `SoftmaxAttention`.
    Raises:
        ValueError: as `SoftmaxAttention` and `HeadRouter`. TypeError: an option that is not among these.
    Source: arXiv:2410.11842, section 3.
    """

    shown = (*SoftmaxAttention.shown, "num_shared", "num_active")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_shared: int | float | None = None,
        num_active: int | float = 0.75,
        router: Literal["linear", "query-norm"] = "linear",
        gate_scale: Literal["code", "paper", "hard"] = "code",
        straight_through: Literal["all", "chosen"] = "all",
        **attention: Any,
    ) -> None:
        for option in ("dropout_p", "qk_norm"):
            if option in attention:
                raise TypeError(f"MixtureOfHeads: {option} is no option of routed attention; leave it out.")
        super().__init__(hidden_size, num_heads, **attention)
        check_range(self, 0, num_shared=num_shared)
        check_range(self, above=0, num_active=num_active)
        for name, number in (("num_active", num_active), ("num_shared", num_shared)):
            if number is not None and number > 1 and number != int(number):
                raise ValueError(f"MixtureOfHeads: {name} must be a number of heads or a share below 1, got {number}.")
        self.num_active = max(1, _count(num_active, num_heads))
        even = min(num_heads // 2, self.num_active - (self.num_active < num_heads))
        self.num_shared = even if num_shared is None else _count(num_shared, num_heads)
        check_counts(self, num_heads, self.num_shared, self.num_active)
        self.router = HeadRouter(
            hidden_size,
            num_heads,
            num_shared=self.num_shared,
            num_active=self.num_active,
            router=router,
            gate_scale=gate_scale,
            straight_through=straight_through,
            **{name: attention.get(name) for name in ("device", "dtype")},
        )

    @classmethod
    def _options_of(cls, weights: AttentionWeights) -> dict[str, Any]:
        """A router that needs no training, and active heads that count as before."""
        return super()._options_of(weights) | {"router": "query-norm", "gate_scale": "hard"}

    def project(self, hidden_states: Tensor, positions: Tensor | None = None) -> Heads:
        """[B, *space, C] to queries, keys and values by head, and the gates [B, T, H] of the queries."""
        heads = super().project(hidden_states, positions)
        return heads._replace(gate=self.router(hidden_states.flatten(1, -2), heads.q))

    def attend(self, heads: Heads, *, cache: TokenCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """What active heads say of the tokens and what the cache holds, times their gates: [B, T, H, K]."""
        k, v, mask = self._visible(heads, cache)
        gates = heads.gate
        if gates is None:
            raise ValueError("MixtureOfHeads: heads have no gates; take those that project() returns.")
        if self.router.learns_of_idle_heads:
            out: Tensor = softmax_attention(
                heads.q, k, v, is_causal=self.is_causal, attn_mask=mask, cu_seqlens=cu_seqlens
            )
            return out * gates[..., None].to(out.dtype)
        return routed_attention(heads.q, k, v, gates, is_causal=self.is_causal, attn_mask=mask, cu_seqlens=cu_seqlens)

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """With the heads that are on, and the keys that a row reads."""
        sizes = super().cost_sizes(space)
        rows = max(1, -(-sizes["T"] * self.num_active // self.num_heads))
        blocks = max(1, rows // 256) if self.is_causal else 1
        keys = round(sizes["T"] * (blocks + 1) / (2 * blocks)) if self.is_causal else sizes["T"]
        return {**sizes, "A": self.num_active, "M": keys, "G": self.num_kv_heads}


def _count(number: float, num_heads: int) -> int:
    """Heads: a number of them, or a share."""
    return round(number * num_heads) if 0 < number < 1 else int(number)
