r"""What all tokens of all chunks read, given the states at the borders of chunks.

    out_i = scale sum_j mask_ij (x_i . y_j) z_j + scale since_i x_i S                 S: state before the chunk
    out_j = scale sum_i mask_ij (x_j . y_i) z_i + until_j x_j E       (REVERSE)       E: gradient of the state after it

One kernel gives the output (x, y, z = q, k, v) and the gradients of v (k, q, dO; REVERSE), q (dO, v, k with S^T) and
k (v, dO, q with E^T; REVERSE). With a decay per key channel, products with the mask are computed apart: `scores`
[B, H, chunks, SIZE, SIZE] replaces mask_ij (x_i . y_j) where the decayed channels are summed (INPUT), and where they
are kept the decay belongs to the result and the first sum is left to `inside`.

Sizes: SIZE tokens in a chunk, X channels summed over in tiles of BX, Z channels of the result in tiles of BZ.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from attensor.ops.linear_attention.triton.device import chunk_place, decay_factors, decay_mask, load_tile
from attensor.ops.linear_attention.triton.tuning import operand_width, tuned

__all__ = ["load_scores", "read_kernel"]


def _shared(sizes: Mapping[str, Any]) -> tuple[int, int]:
    width, gates = operand_width(sizes["DOT"]), 8 if sizes["DECAY"] == 3 else 0
    stage = sizes["BX"] * (sizes["SIZE"] * (2 * width + gates) + sizes["BZ"] * width)
    tiles = sizes["SIZE"] * (sizes["SIZE"] + sizes["BZ"] + 2 * sizes["BX"]) + sizes["BX"] * sizes["BZ"]
    return stage, tiles * width


@triton.jit
def load_scores(scores, SIZE: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The [SIZE, SIZE] scores of one chunk, or their transpose."""
    place = tl.arange(0, SIZE)
    if TRANSPOSED:
        block = tl.load(scores + place[None, :] * SIZE + place[:, None])
    else:
        block = tl.load(scores + place[:, None] * SIZE + place[None, :])
    return block


@tuned(
    {"BX": (32, 64), "BZ": (32, 64, 128)},
    {"BX": "X", "BZ": "Z"},
    _shared,
    ("DECAY", "X", "Z", "SIZE", "DOT", "INPUT", "REVERSE"),
)
@triton.jit(do_not_specialize=["tokens", "chunks", "slots"])
def read_kernel(
    x, y, z, gates, states, scores, out, table, scale, tokens, chunks, slots,
    H: tl.constexpr, HX: tl.constexpr, HY: tl.constexpr, HZ: tl.constexpr, HD: tl.constexpr,
    X: tl.constexpr, Z: tl.constexpr, STRIDE_X: tl.constexpr, STRIDE_Z: tl.constexpr,
    DECAY: tl.constexpr, GATE_BATCH: tl.constexpr, SIZE: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
    INPUT: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, BX: tl.constexpr, BZ: tl.constexpr,
):  # fmt: skip
    """One (batch, head, chunk, Z tile); states [B, H, slots, X or Z, Z or X] with strides STRIDE_X, STRIDE_Z."""
    tiles: tl.constexpr = tl.cdiv(Z, BZ)
    program = tl.program_id(0)
    cols_z = program % tiles * BZ + tl.arange(0, BZ)
    place = (program // tiles).to(tl.int64)  # (batch, head, chunk)
    batch, head, start, stop, slot = chunk_place(table, place, chunks, tokens, H, SIZE, PACKED)
    if stop <= start:
        return
    rows = start + tl.arange(0, SIZE)
    gate_head = head // (H // HD)
    x += (batch * tokens * HX + head // (H // HX)) * X
    y += (batch * tokens * HY + head // (H // HY)) * X
    z += (batch * tokens * HZ + head // (H // HZ)) * Z
    states += ((batch * H + head) * slots + slot + (1 if REVERSE else 0)) * X * Z

    result = tl.zeros([SIZE, BZ], tl.float32)
    inner = tl.zeros([SIZE, SIZE], tl.float32)
    for tile in range(tl.cdiv(X, BX)):
        cols_x = tile * BX + tl.arange(0, BX)
        reading = load_tile(x, rows, stop, HX * X, cols_x, X)
        inside = (cols_x < X)[:, None] & (cols_z < Z)[None, :]
        cells = cols_x[:, None] * STRIDE_X + cols_z[None, :] * STRIDE_Z
        state = tl.load(states + cells, mask=inside, other=0.0).to(DOT)
        if DECAY == 3:
            if INPUT:
                since, until, _ = decay_factors(
                    gates, batch, start, stop, tokens, gate_head, cols_x, DECAY, GATE_BATCH, HD, X, SIZE
                )
                reading = reading.to(tl.float32) * (until if REVERSE else since)
        else:
            written = load_tile(y, rows, stop, HY * X, cols_x, X)
            inner += tl.dot(reading.to(DOT), tl.trans(written.to(DOT)), input_precision=PRECISION)
        result += tl.dot(reading.to(DOT), state, input_precision=PRECISION)
    if DECAY < 3 or not INPUT:
        since, until, _ = decay_factors(
            gates, batch, start, stop, tokens, gate_head, cols_z, DECAY, GATE_BATCH, HD, Z, SIZE
        )
        result *= until if REVERSE else since
    if not REVERSE:
        result *= scale
    if DECAY < 3 or INPUT:
        if DECAY == 3:
            inner = load_scores(scores + place * SIZE * SIZE, SIZE, REVERSE)
        else:
            inner *= decay_mask(gates, batch, start, stop, tokens, gate_head, DECAY, GATE_BATCH, HD, SIZE, REVERSE)
        carried = load_tile(z, rows, stop, HZ * Z, cols_z, Z)
        result += scale * tl.dot(inner.to(DOT), carried.to(DOT), input_precision=PRECISION)
    out += (batch * tokens * H + head) * Z
    inside = (rows < stop)[:, None] & (cols_z < Z)[None, :]
    tl.store(out + rows[:, None] * (H * Z) + cols_z[None, :], result.to(out.dtype.element_ty), mask=inside)
