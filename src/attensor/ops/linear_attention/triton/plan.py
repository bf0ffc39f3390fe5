"""Sizes and tables of one call, in the form that kernels take."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from attensor.ops._packing import chunks_of
from attensor.ops.linear_attention.problem import Inputs
from attensor.ops.linear_attention.triton.tuning import INTERPRETED

__all__ = ["Plan"]

_SMALLEST_CHUNK = 16  # rows of a matrix unit


class Plan:
    """One call: contiguous inputs of one dtype, sizes, and where chunks lie.

    Args:
        inputs: the tensors of the call.
        chunk_size: tokens in a chunk, a power of two; at least 16 are taken.
    """

    def __init__(self, inputs: Inputs, chunk_size: int) -> None:
        self.batch, self.tokens, self.heads, self.key_dim = inputs.q.shape
        self.value_dim = inputs.v.shape[-1]
        self.chunk_size = max(_SMALLEST_CHUNK, chunk_size)
        self.dtype = torch.promote_types(torch.promote_types(inputs.q.dtype, inputs.k.dtype), inputs.v.dtype)
        if INTERPRETED and self.dtype == torch.bfloat16:
            self.dtype = torch.float32  # the interpreter's bfloat16 products are wrong
        self.q, self.k, self.v = (self.converted(x) for x in inputs[:3])
        self.gates = None if inputs.log_decay is None else _readable(inputs.log_decay)
        self.initial = None if inputs.initial_state is None else inputs.initial_state.float().contiguous()
        self.decay = 0 if self.gates is None else self.gates.ndim - 1
        self.cu_seqlens = None if inputs.cu_seqlens is None else inputs.cu_seqlens.contiguous()
        self.table: Tensor | None = None
        self.first_chunk: Tensor | None = None
        self.rows, self.chunks = inputs.rows, -(-self.tokens // self.chunk_size)
        if self.cu_seqlens is not None:
            self.chunks = self.tokens // self.chunk_size + self.rows
        if self.cu_seqlens is not None and not self.is_empty:
            self.table, self.first_chunk = _tables(self.cu_seqlens, self.tokens, self.chunk_size)

    @property
    def is_empty(self) -> bool:
        """Nothing to compute: some size is 0."""
        return 0 in (self.q.numel(), self.v.numel(), self.rows)

    @property
    def state_dtype(self) -> torch.dtype:
        """Of states that only matrix products read."""
        return torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32

    def converted(self, x: Tensor) -> Tensor:
        """x as the kernels take it: contiguous, in the call's dtype."""
        return x.to(self.dtype).contiguous()

    def new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An output [..., B, T, heads, D]; tokens outside all packed sequences stay 0."""
        make = self.q.new_empty if self.cu_seqlens is None else self.q.new_zeros
        return make(shape, dtype=dtype)

    def new_states(self) -> Tensor:
        """[R, B, H, K, V] in float32, to be filled."""
        shape = (self.rows, self.batch, self.heads, self.key_dim, self.value_dim)
        return self.q.new_empty(shape, dtype=torch.float32)

    @property
    def sequences(self) -> int:
        """Sequences of all batch entries and heads."""
        return self.rows * self.batch * self.heads

    @property
    def places(self) -> int:
        """Chunks of all batch entries and heads."""
        return self.chunks * self.batch * self.heads

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        """What kernels ask for, by name."""
        # [B or 1, Hd] where the decay is constant, else [B, T, Hd] or more
        shape = (1, 1, 1) if self.gates is None else self.gates.shape
        return {
            "gates": self.gates,
            "cu_seqlens": self.cu_seqlens,
            "table": self.table,
            "first_chunk": self.first_chunk,
            "tokens": self.tokens,
            "chunks": self.chunks,
            "slots": self.chunks + self.rows,
            "batches": self.batch,
            "H": self.heads,
            "HD": shape[1 if self.decay == 1 else 2],
            "K": self.key_dim,
            "V": self.value_dim,
            "DECAY": self.decay,
            "GATE_BATCH": self.decay == 1 and shape[0] > 1,
            "SIZE": self.chunk_size,
            "PACKED": self.cu_seqlens is not None,
            # float16 has the digits of tf32, but not the range that states need
            "DOT": tl.bfloat16 if self.dtype == torch.bfloat16 else tl.float32,
            "PRECISION": self._precision(),
        }

    def _precision(self) -> str:
        """How float32 numbers are multiplied: as `torch.set_float32_matmul_precision` says; float16 as tf32."""
        if INTERPRETED or torch.version.hip is not None:
            return "ieee"
        is_exact = self.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
        # three products of tf32 numbers have float32's digits and keep the matrix units busy
        return "tf32x3" if is_exact else "tf32"


def _readable(log_decay: Tensor) -> Tensor:
    if log_decay.dtype == torch.float64 or (INTERPRETED and log_decay.dtype == torch.bfloat16):
        log_decay = log_decay.float()
    return log_decay.contiguous()


def _tables(cu_seqlens: Tensor, tokens: int, size: int) -> tuple[Tensor, Tensor]:
    """[chunks, 3]: first token, last (exclusive), state slot, unused chunks 0; and the first chunks of sequences."""
    token, sequence = chunks_of(cu_seqlens, tokens, size)
    start, number = token[:, 0], torch.arange(len(sequence), device=sequence.device)
    table = torch.stack([start, start + (token >= 0).sum(1), number + sequence], 1)
    bounds = torch.arange(len(cu_seqlens), device=sequence.device)
    return torch.where(start[:, None] >= 0, table, 0), torch.searchsorted(sequence, bounds)
