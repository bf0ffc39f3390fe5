"""Sizes, layout and segments of one call of `linear_attention`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attensor.ops.linear_attention.decay import ChannelDecay, Decay, MaskedDecay
from attensor.ops.linear_attention.halving import suffix_sum
from attensor.ops.linear_attention.layout import DenseLayout
from attensor.ops.linear_attention.packing import PackedLayout
from attensor.ops.linear_attention.scratch import Scratch

__all__ = ["Inputs", "Plan"]

# Numbers in one [chunks, B * H, C, D] tensor of a segment. On a CPU a segment's dozen temporaries then stay in the
# cache and malloc hands the same pages out again; a GPU wants large batches instead.
_CPU_SEGMENT = 2**18
_GPU_SEGMENT = 2**24


class Inputs(NamedTuple):
    """Tensors of one call; R rows of states, one a packed sequence, or 1."""

    q: Tensor  # [B, T, H, K]
    k: Tensor  # [B, T, Hkv, K]
    v: Tensor  # [B, T, Hkv, V]
    log_decay: Tensor | None  # [B or 1, Hd], [B, T, Hd] or [B, T, Hd, K], Hd = H or Hkv
    initial_state: Tensor | None  # [R, B, H, K, V]
    cu_seqlens: Tensor | None  # [R + 1]; None: R = 1


class Plan:
    """How the tokens of `inputs` are cut up, and the conversions between users' tensors and chunks.

    Args:
        inputs: the tensors of the call.
        chunk_size: C.
    """

    def __init__(self, inputs: Inputs, chunk_size: int) -> None:
        self.inputs = inputs
        self.batch, tokens, self.heads, self.key_dim = inputs.q.shape
        self.value_dim = inputs.v.shape[-1]
        self.chunk_size = chunk_size
        self.dtype = torch.promote_types(torch.promote_types(inputs.q.dtype, inputs.v.dtype), torch.float32)
        self.scratch = Scratch(inputs.q.new_empty(0, dtype=self.dtype))
        self.layout: DenseLayout | PackedLayout
        if inputs.cu_seqlens is None:
            self.layout = DenseLayout(tokens, chunk_size)
        else:
            self.layout = PackedLayout(tokens, chunk_size, inputs.cu_seqlens)
        self._constant: MaskedDecay | None = None

    def segments(self) -> list[tuple[int, int]]:
        """First and last chunk (exclusive) of each segment; none when there is nothing to compute."""
        elements = self.batch * self.heads * self.chunk_size * max(self.key_dim, self.value_dim)
        budget = _CPU_SEGMENT if self.inputs.q.device.type == "cpu" else _GPU_SEGMENT
        step = max(1, budget // max(1, elements))
        count = self.layout.num_chunks if self.batch else 0
        return [(first, min(first + step, count)) for first in range(0, count, step)]

    def split(self, name: str, x: Tensor, first: int, last: int) -> Tensor:
        """Chunks `first:last` of x [B, T, Hx, D] as [n, C, D], in the scratch memory `name`."""
        out = self.scratch.take(name, last - first, self.batch * self.heads, self.chunk_size, x.shape[3])
        self.layout.fill(out, x, first, last)
        return out.flatten(0, 1)

    def product(self, name: str, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        """scale a b for a [n, X, Y] and b [n, Y, Z], in the scratch memory `name`."""
        out = self.scratch.take(name, a.shape[0], a.shape[1], b.shape[2])
        return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)

    def join(self, y: Tensor, out: Tensor, first: int, last: int) -> None:
        """Write y [n, C, D] as chunks `first:last` of out [B, T, Hx, D]; heads that share one of out's are summed."""
        self.layout.join(y.view(last - first, -1, *y.shape[1:]), out, first, last)

    def decay(self, first: int, last: int, *, keep_levels: bool = False) -> Decay:
        """The decay of chunks `first:last`."""
        log_decay = self.inputs.log_decay
        if log_decay is None:
            return MaskedDecay(None, self.scratch)
        if log_decay.ndim == 4:
            slots = self.split("decay", log_decay, first, last)
            return ChannelDecay(slots, self.scratch, keep_levels=keep_levels)
        if log_decay.ndim == 3:
            return MaskedDecay(self.split("decay", log_decay[..., None], first, last), self.scratch)
        return self._constant_decay(log_decay, first, last)

    def _constant_decay(self, log_decay: Tensor, first: int, last: int) -> MaskedDecay:
        full = self.layout.is_full(first, last)
        if full and self._constant is not None:
            return self._constant
        heads = log_decay.to(self.dtype).repeat_interleave(self.heads // log_decay.shape[1], 1)
        heads = heads.expand(self.batch, self.heads).reshape(-1)
        if full:
            self._constant = MaskedDecay.constant(heads, self.chunk_size, self.scratch)
            return self._constant
        # a padded slot must not decay the state
        valid = self.layout.valid(first, last, heads)
        slots = torch.where(valid, heads[:, None], 0.0)  # [chunks, N, C]
        return MaskedDecay(slots.reshape(-1, self.chunk_size, 1), self.scratch)

    def new_decay_gradient(self) -> Tensor | None:
        """Where `join_decay_gradient` collects: shaped as log_decay; sums over tokens in the working dtype."""
        log_decay = self.inputs.log_decay
        if log_decay is None:
            return None
        if log_decay.ndim == 2:
            return torch.zeros_like(log_decay, dtype=self.dtype)
        return self.layout.new_output(log_decay, log_decay.shape)

    def join_decay_gradient(self, exponent: Tensor, at_end: Tensor, out: Tensor, first: int, last: int) -> None:
        """Account the gradients of G_i, `exponent` [n, C, K], and of G_last, `at_end` [n, 1, K], in out."""
        if out.ndim < 4:
            exponent, at_end = exponent.sum(-1, keepdim=True), at_end.sum(-1, keepdim=True)
        exponent[:, -1:].add_(at_end)
        grad = suffix_sum(exponent)
        if out.ndim > 2:
            self.join(grad, out if out.ndim == 4 else out[..., None], first, last)
            return
        chunks = grad.view(last - first, -1, self.chunk_size)
        if not self.layout.is_full(first, last):
            chunks = torch.where(self.layout.valid(first, last, chunks), chunks, 0.0)
        heads = chunks.sum((0, 2)).view(self.batch, out.shape[1], -1).sum(2)
        out.add_(heads if out.shape[0] == self.batch else heads.sum(0, keepdim=True))

    def rows(self, first: int, last: int) -> Tensor | None:
        """The row of the state table that each of the chunks `first:last` uses; None: there is only one."""
        return None if self.layout.sequence is None else self.layout.sequence[first:last]

    def new_table(self, state: Tensor | None) -> Tensor:
        """A state table [R, N, K, V] (one spare row when packed) holding state [R, B, H, K, V], or zeros."""
        rows = self.layout.rows
        spare = 0 if self.layout.sequence is None else 1
        shape = (rows + spare, self.batch * self.heads, self.key_dim, self.value_dim)
        table = self.inputs.q.new_zeros(shape, dtype=self.dtype)
        if state is not None:
            table[:rows].copy_(state.reshape(rows, *shape[1:]))
        return table

    def states(self, table: Tensor) -> Tensor:
        """The states [R, B, H, K, V] of a table."""
        rows = self.layout.rows
        return table[:rows].view(rows, self.batch, self.heads, *table.shape[2:])

    def table_before(self, checkpoint: Tensor, first: int, last: int) -> tuple[Tensor, Tensor | None]:
        """A table for the chunks `first:last` alone, the first of which meets `checkpoint` [N, K, V]; and its rows."""
        rows = self.rows(first, last)
        if rows is None:
            return checkpoint[None].clone(), None
        initial = self.inputs.initial_state
        if initial is None:
            table = checkpoint.new_zeros(last - first, *checkpoint.shape)
        else:
            table = initial.index_select(0, rows.clamp(max=self.layout.rows - 1)).to(self.dtype).flatten(1, 2)
        table[0] = checkpoint
        # rows ascend: a sequence's row in this table is the place of its first chunk
        return table, torch.searchsorted(rows, rows)
