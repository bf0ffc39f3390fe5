r"""Scores inside a chunk for a decay per key channel, by secondary chunking; or without decay.

    scores_ij = sum_c x_ic y_jc exp(sum_{j < t <= i} g_tc)  for j <= i, else 0

A block of 16 rows against all earlier columns is one matrix product of rows decayed from the block's first token on
and columns decayed up to it: no factor exceeds 1. Against its own 16 columns it is summed column by column.

Sizes: SIZE tokens in a chunk, BLOCK = 16 rows, X channels summed over in tiles of BX.
Source: arXiv:2312.06635, section 4.3.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from attensor.ops.linear_attention.triton.device import chunk_place, diagonal_decay, load_tile
from attensor.ops.linear_attention.triton.tuning import tuned

__all__ = ["BLOCK", "block_decay", "border_decay", "scores_kernel"]

BLOCK = 16


def _shared(sizes: Mapping[str, Any]) -> tuple[int, int]:
    # operands twice: as they are, and what tf32 leaves of them
    return 0, (sizes["SIZE"] + 2 * BLOCK) * sizes["BX"] * 8


@triton.jit
def border_decay(gates, rows, border, stop, stride, columns, width, REVERSE: tl.constexpr):
    """Decay of tokens before `border` up to it, or (REVERSE) of tokens from `border` on since then: [rows, columns]."""
    if REVERSE:
        inside = ((rows >= border) & (rows < stop))[:, None] & (columns < width)[None, :]
        gate = tl.load(gates + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)
        decay = tl.exp(tl.cumsum(gate.to(tl.float32), 0))
        kept = (rows >= border)[:, None]
    else:
        gate = load_tile(gates, rows + 1, tl.minimum(border, stop), stride, columns, width)
        decay = tl.exp(tl.cumsum(gate.to(tl.float32), 0, reverse=True))
        kept = (rows < border)[:, None]
    return tl.where(kept, decay, 0.0)


@triton.jit
def block_decay(gates, rows, stop, stride, columns, width, REVERSE: tl.constexpr):
    """Decay of a block's tokens since its first one, or (REVERSE) up to its last one: [rows, columns]."""
    if REVERSE:
        gate = load_tile(gates, rows + 1, stop, stride, columns, width)
        decay = tl.exp(tl.cumsum(gate.to(tl.float32), 0, reverse=True))
    else:
        gate = load_tile(gates, rows, stop, stride, columns, width)
        decay = tl.exp(tl.cumsum(gate.to(tl.float32), 0))
    return decay


@tuned({"BX": (32, 64)}, {"BX": "X"}, _shared, ("DECAY", "X", "SIZE", "PRECISION"))
@triton.jit(do_not_specialize=["tokens", "chunks"])
def scores_kernel(
    x, y, gates, scores, table, tokens, chunks,
    H: tl.constexpr, HX: tl.constexpr, HY: tl.constexpr, HD: tl.constexpr, X: tl.constexpr,
    DECAY: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr,
    BX: tl.constexpr,
):  # fmt: skip
    """One (batch, head, chunk, block of rows); scores [B, H, chunks, SIZE, SIZE]."""
    blocks: tl.constexpr = SIZE // BLOCK
    program = tl.program_id(0)
    place = (program // blocks).to(tl.int64)  # (batch, head, chunk)
    batch, head, start, stop, _ = chunk_place(table, place, chunks, tokens, H, SIZE, PACKED)
    if stop <= start:
        return
    own = program % blocks * BLOCK + tl.arange(0, BLOCK)
    every = tl.arange(0, SIZE)
    border = start + program % blocks * BLOCK
    x += (batch * tokens * HX + head // (H // HX)) * X
    y += (batch * tokens * HY + head // (H // HY)) * X
    gates += (batch * tokens * HD + head // (H // HD)) * X

    result = tl.zeros([BLOCK, SIZE], tl.float32)
    for tile in range(tl.cdiv(X, BX)):
        columns = tile * BX + tl.arange(0, BX)
        reading = load_tile(x, start + own, stop, HX * X, columns, X).to(tl.float32)
        written = load_tile(y, start + every, stop, HY * X, columns, X).to(tl.float32)
        if DECAY == 3:
            written *= border_decay(gates, start + every, border, stop, HD * X, columns, X, False)
            since = block_decay(gates, start + own, stop, HD * X, columns, X, False)
            result += tl.dot(reading * since, tl.trans(written), input_precision=PRECISION)
            decay = tl.full([BLOCK, BX], 1.0, tl.float32)
            for step in range(BLOCK):
                index = BLOCK - 1 - step
                decay = diagonal_decay(
                    decay, index, tl.arange(0, BLOCK), gates, border, stop, HD * X, columns, X, False
                )
                inside = (columns < X) & (border + index < stop)
                key = tl.load(y + (border + index) * (HY * X) + columns, mask=inside, other=0.0).to(tl.float32)
                column = tl.sum(reading * decay * key[None, :], 1)
                result += tl.where((start + every == border + index)[None, :], column[:, None], 0.0)
        else:
            result += tl.dot(reading, tl.trans(written), input_precision=PRECISION)
    result = tl.where(own[:, None] >= every[None, :], result, 0.0)
    tl.store(scores + place * SIZE * SIZE + own[:, None] * SIZE + every[None, :], result)
