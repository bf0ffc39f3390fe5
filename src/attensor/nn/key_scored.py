"""Attention whose scores depend on the key's place alone: a softmax over the past as a recurrence of one number a head.

    z_t = silu(q_t) . k_t / sqrt(K)                      L_t = log sum_{j <= t} exp(z_j)
    S_t = exp(L_{t-1} - L_t) S_{t-1} + exp(z_t - L_t) v_t

S_t is the output: `linear_attention` with one key channel, keys and decays in (0, 1], and queries of 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.nn.cache import StateCache
from attensor.nn.linear_attention import LinearAttention
from attensor.nn.mixer import Heads
from attensor.ops._free_sizes import is_free

__all__ = ["KeyScoredAttention"]


class KeyScoredAttention(LinearAttention):
    """Every token has one weight, `exp(silu(q_j) . k_j / sqrt(K))`, whoever reads it: all later tokens mix alike.

    Query and key are of the same token, so that rotary positions would change nothing. No norm and no gate.
    Cost O(T V) per head, but for chunks; decoding keeps V + 1 numbers per head, the mean and the logarithm of the sum
    of the weights: the paper's V + 2 are their sum with the values, the sum of the weights, and the largest score that
    both are divided by, which the logarithm makes unnecessary. Keys of the state_dict: `{q,k,v,o}_proj.weight`, and
    `.bias`; `{q,k}_norm.weight`.

    Args:
        hidden_size: channels C.
        num_heads: heads H, each of C / H channels.
        qkv_bias: add a learned number to each channel of queries, keys and values.
        qk_norm: norms of queries, before their SiLU, and of keys, as in `SoftmaxAttention`; scores then stay below
            sqrt(K) times their weights, without which a whole model of it may not converge (the paper's 1.7B).
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels.
    Source: arXiv:2510.11602, equations 7, 8 and 18 ("non-approximate"; with the scale that equation 18 leaves out).
    """

    shown = ("hidden_size", "num_heads")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, num_heads, norm=None, device=device, dtype=dtype)
        self._add_options(qkv_bias, qk_norm)

    def activate(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Norms, and SiLU of the queries."""
        q, k, v = super().activate(q, k, v)
        return F.silu(q), k, v

    def attend(self, heads: Heads, *, cache: StateCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """The recurrence; padding at the beginning of rows counts for nothing: [B, T, H, V]."""
        wide = torch.promote_types(heads.q.dtype, torch.float32)
        z = (heads.q.to(wide) * heads.k.to(wide)).sum(-1) * self.key_dim**-0.5  # [B, T, H]
        if cache is None:
            out = super().attend(_weighted(z, _log_sums(z, cu_seqlens), heads), cu_seqlens=cu_seqlens)
            return out.to(heads.v.dtype)
        before = cache.states["log_sum"]
        z = z.to(torch.promote_types(wide, before.dtype))
        real = cache.real(cache.length, cache.length + z.shape[1])
        if real is not None:  # finite, as gradients of infinities are none
            z = torch.where(real[..., None], z, torch.finfo(z.dtype).min / 4)
        sums = torch.cat([before[:, None], torch.logaddexp(before[:, None], _log_sums(z, None))], 1)
        out = super().attend(_weighted(z, sums[:, 1:], heads, before), cache=cache)
        last = sums[:, -1] if real is None or not z.shape[1] else torch.where(real[:, -1:], sums[:, -1], before)
        cache.update(0, log_sum=last)
        return out.to(heads.v.dtype)

    def _new_cache(
        self, batch_size: int, max_length: int | None, device: torch.device, dtype: torch.dtype | None
    ) -> StateCache:
        sizes = {"state": (self.num_heads, *self.state_sizes), "log_sum": (self.num_heads,)}
        return StateCache(batch_size, sizes, start={"log_sum": -torch.inf}, device=device, dtype=dtype)

    @property
    def is_average(self) -> bool:
        """True: a softmax over the scores of the past."""
        return True

    @property
    def state_sizes(self) -> tuple[int, int]:
        """One row: the weighted mean of the values so far."""
        return 1, self.value_dim


def _weighted(z: Tensor, log_sums: Tensor, heads: Heads, before: Tensor | None = None) -> Heads:
    """What `linear_attention` takes: keys `exp(z_t - L_t)` and decays `L_{t-1} - L_t`."""
    past = z.new_full((z.shape[0], z.shape[2]), -torch.inf) if before is None else before
    past = torch.cat([past[:, None], log_sums], 1)[:, :-1]
    # nothing is there to decay before the first token
    decay = torch.where(past == -torch.inf, 0.0, past - log_sums).clamp(max=0)
    keys = (z - log_sums)[..., None].exp()
    return Heads(torch.ones_like(keys), keys, heads.v.to(keys.dtype), decay)


def _log_sums(z: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Logarithms of running sums of exp(z) [B, T, H] along T, of each packed sequence by itself."""
    if cu_seqlens is None:
        return z.logcumsumexp(1)
    places = torch.arange(z.shape[1], device=z.device)
    start = cu_seqlens.to(z.device)[torch.searchsorted(cu_seqlens.to(z.device), places, right=True) - 1]
    if is_free(z.shape[1]):  # no loop over a length that is not known
        inside = (places <= places[:, None]) & (places >= start[:, None])
        return torch.where(inside[..., None], z[:, None], -torch.inf).logsumexp(2)
    reach = 1
    while reach < z.shape[1]:  # each holds the sum of the last `reach` tokens, and takes those before
        joined = torch.logaddexp(z[:, reach:], z[:, :-reach])
        inside = (places - reach >= start)[reach:, None]
        z = torch.cat([z[:, :reach], torch.where(inside, joined, z[:, reach:])], 1)
        reach *= 2
    return z
