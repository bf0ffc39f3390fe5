"""Taylor attention: softmax attention with the first three terms of exp, as a recurrence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from attensor.nn._shapes import check_range, head_dim
from attensor.nn.cache import StateCache
from attensor.nn.linear_attention import LinearAttention
from attensor.nn.mixer import Heads
from attensor.ops import Denominator, TaylorFeatures, kernel_attention

__all__ = ["TaylorAttention"]


class TaylorAttention(LinearAttention):
    """Weights 1 + s + s^2 / 2 in the place of exp(s), with s = q . k / sqrt(K): sums of constant size hold the past.

    Full, the weight is at least 1/2. Diagonal, its second order has only the squares of each channel,
    `1 + sum_c a_c + sum_c a_c^2 / 2` with `a_c = q_c k_c / sqrt(K)`: a state smaller, but weights down to 1 - K / 2.
    Sums of weights nearer to 0 than 1e-6 are then moved there, on their own side. No norm and no gate.

    Cost O(T (chunk + M) V) per head with M = 1 + 2 K features, full (K + 1) (K + 2) / 2; decoding keeps M (V + 1) - 1
    numbers per head, as the paper's table has them: the sums of order 0 to 2, but for the number of tokens, which is
    that of the cache. Keys of the state_dict: `{q,k,v,o}_proj.weight`, and `.bias`; `{q,k}_norm.weight`.

    Args:
        hidden_size: channels C.
        num_heads: query heads H, each of C / H channels.
        num_kv_heads: key/value heads, a divisor of H; H if None.
        second_order: `"diagonal"` as in the cache sizes of the paper, `"full"` as in Based.
        normalize: `"joint"` divides the sum of all orders by that of their weights; `"separate"` each order by its own,
            and adds the three quotients, as the paper's equation 6 literally says; sums of the first may be near 0.
        rotary_base: base of rotary positions; None for no positions. Diagonal second orders do not turn with them.
        qkv_bias: add a learned number to each channel of queries, keys and values.
        qk_norm: norms of queries and keys, as in `SoftmaxAttention`.
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels, rotary positions with an odd head width, an unknown choice.
    Source: arXiv:2510.11602, equations 6 and 14 to 17; full: arXiv:2402.18668, section 4.
    """

    shown = ("hidden_size", "num_heads", "num_kv_heads", "second_order", "normalize")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        second_order: Literal["diagonal", "full"] = "diagonal",
        normalize: Literal["joint", "separate"] = "joint",
        rotary_base: float | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_range(self, above=0, rotary_base=rotary_base)
        if rotary_base is not None and (width := head_dim(self, hidden_size, num_heads)) % 2:
            raise ValueError(
                f"TaylorAttention: rotary positions need an even head width, got hidden_size {hidden_size} / num_heads "
                f"{num_heads} = {width}; change them or set rotary_base=None."
            )
        features = TaylorFeatures(2, second_order == "diagonal")
        super().__init__(
            *(hidden_size, num_heads),
            num_kv_heads=num_kv_heads,
            feature_map=features,
            norm=None,
            device=device,
            dtype=dtype,
        )
        self.second_order, self.normalize, self.orders = second_order, normalize, features.orders
        is_signed = second_order == "diagonal" or normalize == "separate"
        self.denominator = Denominator(1e-6, keep_sign=True) if is_signed else Denominator(eps=1e-6)
        if rotary_base is not None:
            self.uses_positions, self.rotary_base = True, rotary_base
        self._add_options(qkv_bias, qk_norm)

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """Values of the symbols of the card's formulas for an input of that size."""
        return {**super().cost_sizes(space), "M": self.state_sizes[0], "V": self.value_dim}

    def _new_cache(
        self, batch_size: int, max_length: int | None, device: torch.device, dtype: torch.dtype | None
    ) -> StateCache:
        rows, columns = self.state_sizes
        return StateCache(batch_size, {"state": (self.num_heads, rows * columns - 1)}, device=device, dtype=dtype)

    def _held(self, cache: StateCache) -> Tensor:
        """The state with the sum of all ones in its place, last in its first row: how many tokens there were."""
        kept, width = cache.states["state"], self.value_dim
        tokens = (cache.length - cache.first).clamp(min=0).to(kept.dtype)  # [B]
        count = tokens[:, None, None].expand(-1, self.num_heads, 1)
        return torch.unflatten(torch.cat([kept[..., :width], count, kept[..., width:]], -1), -1, self.state_sizes)

    def _kept(self, state: Tensor) -> Tensor:
        every, width = state.flatten(-2), self.value_dim
        return torch.cat([every[..., :width], every[..., width + 1 :]], -1)

    @property
    def is_average(self) -> bool:
        """Whether one sum of weights divides all orders."""
        return self.normalize == "joint"

    def _run(self, heads: Heads, state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.normalize == "joint":
            return super()._run(heads, state, cu_seqlens)
        outs, states = [], []
        queries, keys = self.orders(heads.q), self.orders(heads.k)
        sizes = [k.shape[-1] for k in keys]
        starts = [None] * len(keys) if state is None else torch.split(state, sizes, 2)
        for q, k, start in zip(queries, keys, starts):
            out, last = kernel_attention(
                *(q, k, heads.v.to(k.dtype)),
                denominator=self.denominator,
                initial_state=start,
                output_final_state=state is not None,
                cu_seqlens=cu_seqlens,
            )
            outs.append(out)
            states.append(last)
        out = torch.stack(outs).sum(0).to(heads.v.dtype)
        return out, None if state is None else torch.cat([x for x in states if x is not None], 2)

    def _step(self, heads: Heads, state: Tensor) -> tuple[Tensor, Tensor]:
        if self.normalize == "joint":
            return super()._step(heads, state)
        out, last = self._run(heads, state, None)
        return out, state if last is None else last
