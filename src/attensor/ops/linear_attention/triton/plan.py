"""Sizes and tables of one call, in the form that kernels take."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

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
        self.rows = 1
        self.chunks = -(-self.tokens // self.chunk_size)
        if self.cu_seqlens is not None:
            self.rows = self.cu_seqlens.shape[0] - 1
            self.chunks = self.tokens // self.chunk_size + self.rows
        if self.cu_seqlens is not None and not self.is_empty:
            self.table, self.first_chunk = _tables(self.cu_seqlens.long(), self.chunks, self.chunk_size)

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

    def common(self, heads: dict[str, Tensor]) -> dict[str, Any]:
        """Arguments of all chunk kernels; `heads` names the tensors whose number of heads a kernel wants."""
        gate_heads = 1 if self.gates is None else self.gates.shape[1 if self.decay == 1 else 2]
        has_batch = self.gates is not None and self.decay == 1 and self.gates.shape[0] > 1
        return {
            "H": self.heads,
            "HD": gate_heads,
            "DECAY": self.decay,
            "GATE_BATCH": has_batch,
            "SIZE": self.chunk_size,
            "PACKED": self.cu_seqlens is not None,
            # float16 has the digits of tf32, but not the range that states need
            "DOT": tl.bfloat16 if self.dtype == torch.bfloat16 else tl.float32,
            "PRECISION": self._precision(),
        } | {name: x.shape[2] for name, x in heads.items()}

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


def _tables(bounds: Tensor, chunks: int, size: int) -> tuple[Tensor, Tensor]:
    """[chunks, 3]: first token, last token (exclusive), state slot, unused chunks 0; and each sequence's first chunk.

    The lengths are data, the sizes of the tables are not: nothing is read back to the host.
    """
    rows = bounds.shape[0] - 1
    counts = (bounds.diff() + size - 1) // size
    last_chunk = counts.cumsum(0)
    first_chunk = torch.cat([last_chunk.new_zeros(1), last_chunk])  # [rows + 1]
    chunk = torch.arange(chunks, device=bounds.device)
    sequence = torch.searchsorted(last_chunk, chunk, right=True)
    used = sequence.clamp(max=rows - 1)
    start = bounds[used] + (chunk - first_chunk[used]) * size
    stop = torch.minimum(start + size, bounds[used + 1])
    table = torch.stack([start, stop, chunk + sequence], 1)
    return torch.where((sequence < rows)[:, None], table, 0), first_chunk
