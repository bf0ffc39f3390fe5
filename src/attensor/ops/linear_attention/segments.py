"""Sums over whole sequences: a batch of equally long ones, or packed ones.

Sizes: B batch, T tokens, H heads, N packed sequences, R = N, or 1 when nothing is packed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.ops.linear_attention.packing import PackedLayout

__all__ = ["Segments"]

_CHUNK = 64  # packed tokens whose products of key and value are summed by one matrix product


class Segments:
    """The sequences that the tokens of [B, T, ...] belong to.

    Args:
        like: any tensor [B, T, ...].
        cu_seqlens: [N + 1], boundaries of packed sequences (B = 1); None: B sequences of T tokens.
    """

    def __init__(self, like: Tensor, cu_seqlens: Tensor | None) -> None:
        self.tokens = like.shape[1]
        self.cu_seqlens = cu_seqlens
        token = torch.arange(self.tokens, device=like.device)
        if cu_seqlens is None:
            self.position = token
            return
        starts = cu_seqlens.long()
        # tokens after the last boundary form a sequence of their own, number N
        self.index = torch.searchsorted(starts, token, right=True) - 1  # [T]
        self.position = token - starts[self.index]  # [T], from 0 in each sequence
        self.lengths = torch.cat([starts.diff(), self.tokens - starts[-1:]])

    def mean(self, x: Tensor) -> Tensor:
        """Mean of x [B, T, H, D] over its sequence, for every token: [B, T or 1, H, D]."""
        if self.cu_seqlens is None:
            return x.mean(1, keepdim=True)
        sums = x.new_zeros(1, len(self.lengths), *x.shape[2:]).index_add(1, self.index, x)
        return (sums / self.lengths[:, None, None].clamp_min(1))[:, self.index]

    def maximum(self, x: Tensor) -> Tensor:
        """Largest of x [B, T, H, D] in its sequence, for every token; a constant to autograd."""
        x = x.detach()
        if self.cu_seqlens is None:
            return x.amax(1, keepdim=True) if self.tokens else x
        lowest = x.new_full((1, len(self.lengths), *x.shape[2:]), float("-inf"))
        index = self.index[:, None, None].expand_as(x)
        return lowest.scatter_reduce(1, index, x, "amax")[:, self.index]

    def last_position(self) -> Tensor:
        """Position of the last token of its sequence, for every token: [T]."""
        if self.cu_seqlens is None:
            return torch.full_like(self.position, self.tokens - 1)
        return self.lengths[self.index] - 1

    def state(self, k: Tensor, v: Tensor) -> Tensor:
        """sum_j k_j v_j^T over each sequence: k [B, T, H, K], v [B, T, H, V] -> [B or N, H, K, V]."""
        if self.cu_seqlens is None:
            return torch.matmul(k.permute(0, 2, 3, 1), v.transpose(1, 2))
        layout = PackedLayout(self.tokens, _CHUNK, self.cu_seqlens)
        keys, values = (layout.split(x, x.shape[2], 0, layout.num_chunks, x.dtype) for x in (k, v))
        states = keys.new_zeros(layout.rows + 1, *k.shape[2:], v.shape[3])
        if layout.sequence is not None and layout.num_chunks:
            states = states.index_add(0, layout.sequence, torch.matmul(keys.mT, values))
        return states[: layout.rows]

    def read(self, q: Tensor, state: Tensor) -> Tensor:
        """q_i times the state of its sequence: q [B, T, H, K], state [B or N, H, K, V] -> [B, T, H, V]."""
        if self.cu_seqlens is None:
            return torch.matmul(q.transpose(1, 2), state).transpose(1, 2)
        layout = PackedLayout(self.tokens, _CHUNK, self.cu_seqlens)
        out = q.new_zeros(*q.shape[:3], state.shape[-1])
        if layout.sequence is None or not layout.num_chunks or not layout.rows:
            return out
        queries = layout.split(q, q.shape[2], 0, layout.num_chunks, q.dtype)
        answers = torch.matmul(queries, state[layout.sequence.clamp(max=layout.rows - 1)])
        layout.join(answers, out, 0, layout.num_chunks)
        return out
