r"""Gradients of the scores of `scores` with respect to x, or (REVERSE) to y, for a decay per key channel.

    dx_i = outer_i + scale sum_{j <= i} d_ij exp(sum_{j < t <= i} g_t) y_j
    dy_j = outer_j + scale sum_{i >= j} d_ij exp(sum_{j < t <= i} g_t) x_i          (REVERSE)

Blocks as in `scores`; REVERSE meets at the border after a block instead of the one before it.

Sizes: SIZE tokens in a chunk, BLOCK = 16 rows, K channels in tiles of BK.
Source: arXiv:2312.06635, section 4.3.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from attensor.ops.linear_attention.triton.device import chunk_place, diagonal_decay, load_tile
from attensor.ops.linear_attention.triton.scores import BLOCK, block_decay, border_decay
from attensor.ops.linear_attention.triton.tuning import tuned

__all__ = ["inside_kernel"]


def _shared(sizes: Mapping[str, Any]) -> tuple[int, int]:
    return 0, ((sizes["SIZE"] + BLOCK) * sizes["BK"] + BLOCK * sizes["SIZE"]) * 8


@tuned({"BK": (32, 64)}, {"BK": "K"}, _shared, ("K", "SIZE", "PRECISION", "REVERSE"))
@triton.jit(do_not_specialize=["tokens", "chunks"])
def inside_kernel(
    other, gates, grad_scores, outer, out, table, scale, tokens, chunks,
    H: tl.constexpr, HO: tl.constexpr, HD: tl.constexpr, K: tl.constexpr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """One (batch, head, chunk, block, K tile); outer, out [B, T, H, K], grad_scores [B, H, chunks, SIZE, SIZE]."""
    tiles: tl.constexpr = tl.cdiv(K, BK)
    blocks: tl.constexpr = SIZE // BLOCK
    program = tl.program_id(0)
    block = program // tiles % blocks
    place = (program // (tiles * blocks)).to(tl.int64)  # (batch, head, chunk)
    batch, head, start, stop, _ = chunk_place(table, place, chunks, tokens, H, SIZE, PACKED)
    first = start + block * BLOCK
    if stop <= first:
        return
    columns = program % tiles * BK + tl.arange(0, BK)
    numbers = tl.arange(0, BLOCK)
    own = block * BLOCK + numbers
    every = tl.arange(0, SIZE)
    other += (batch * tokens * HO + head // (H // HO)) * K
    gates += (batch * tokens * HD + head // (H // HD)) * K
    grad_scores += place * SIZE * SIZE
    row_stride: tl.constexpr = 1 if REVERSE else SIZE
    column_stride: tl.constexpr = SIZE if REVERSE else 1

    border = first + BLOCK if REVERSE else first
    source = load_tile(other, start + every, stop, HO * K, columns, K).to(tl.float32)
    source *= border_decay(gates, start + every, border, stop, HD * K, columns, K, REVERSE)
    grads = tl.load(grad_scores + own[:, None] * row_stride + every[None, :] * column_stride)
    result = tl.dot(grads, source, input_precision=PRECISION)
    # a block ends at its border, though its chunk may go on
    end = tl.minimum(stop, first + BLOCK)
    result *= block_decay(gates, start + own, end, HD * K, columns, K, REVERSE)
    decay = tl.full([BLOCK, BK], 1.0, tl.float32)
    for step in range(BLOCK):
        index = step if REVERSE else BLOCK - 1 - step
        decay = diagonal_decay(decay, index, numbers, gates, first, stop, HD * K, columns, K, REVERSE)
        inside = (columns < K) & (first + index < stop)
        row = tl.load(other + (first + index) * (HO * K) + columns, mask=inside, other=0.0).to(tl.float32)
        kept = numbers <= index if REVERSE else numbers >= index
        weight = tl.load(grad_scores + own * row_stride + (block * BLOCK + index) * column_stride, mask=kept, other=0.0)
        result += weight[:, None] * decay * row[None, :]
    cells = (batch * tokens * H + head) * K + (start + own)[:, None] * (H * K) + columns[None, :]
    filled = (start + own < stop)[:, None] & (columns < K)[None, :]
    result = result * scale + tl.load(outer + cells, mask=filled, other=0.0)
    tl.store(out + cells, result.to(out.dtype.element_ty), mask=filled)
