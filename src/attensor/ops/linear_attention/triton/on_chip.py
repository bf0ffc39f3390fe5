r"""The whole recurrence in one kernel, chunk after chunk, the state in registers: nothing but the result is written.

    out_i = scale (sum_j mask_ij (x_i . y_j) z_j + since_i x_i S)        S <- total S + sum_j until_j y_j z_j^T

REVERSE runs from the last token to the first: `mask` is transposed, since and until change places, and `scale` belongs
to the first sum and to the new part of the state alone. As in `read`, that is the output or the gradient of q, k or v.
Best when batch, heads and tiles of Z fill the device, or when there are few chunks.

Sizes: SIZE tokens in a chunk; X channels of the state's rows in slices of BX, whose results are summed outside; Z
channels of the result in tiles of BZ.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from attensor.ops.linear_attention.triton.device import decay_factors, decay_mask, load_tile
from attensor.ops.linear_attention.triton.read import load_scores
from attensor.ops.linear_attention.triton.tuning import operand_width, tuned

__all__ = ["on_chip_kernel"]


def _shared(sizes: Mapping[str, Any]) -> tuple[int, int]:
    width, size = operand_width(sizes["DOT"]), sizes["SIZE"]
    gates = size * (8 * sizes["BX"] + 4 * size) if sizes["DECAY"] == 3 else 0
    stage = size * (2 * sizes["BX"] + sizes["BZ"]) * width + gates
    return stage, (sizes["BX"] * sizes["BZ"] + size * (size + 3 * sizes["BX"])) * width


@tuned({"BZ": (16, 32, 64)}, {"BZ": "Z"}, _shared, ("DECAY", "X", "Z", "SIZE", "DOT", "REVERSE"))
@triton.jit(do_not_specialize=["tokens", "chunks", "batches"])
def on_chip_kernel(
    x, y, z, gates, initial, scores, out, final, cu_seqlens, first_chunk, scale, tokens, chunks, batches,
    H: tl.constexpr, HX: tl.constexpr, HY: tl.constexpr, HZ: tl.constexpr, HD: tl.constexpr,
    X: tl.constexpr, Z: tl.constexpr, STRIDE_X: tl.constexpr, STRIDE_Z: tl.constexpr,
    DECAY: tl.constexpr, GATE_BATCH: tl.constexpr, SIZE: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, BX: tl.constexpr, BZ: tl.constexpr,
):  # fmt: skip
    """One (sequence, batch, head, X slice, Z tile); out [slices, B, T, H, Z], states [R, B, H, X or Z, Z or X]."""
    tiles: tl.constexpr = tl.cdiv(Z, BZ)
    slices: tl.constexpr = tl.cdiv(X, BX)
    program = tl.program_id(0)
    part = program // tiles % slices
    place = (program // (tiles * slices)).to(tl.int64)  # (sequence, batch, head)
    head = place % H
    batch = place // H % batches
    sequence = place // H // batches
    cols_x = part * BX + tl.arange(0, BX)
    cols_z = program % tiles * BZ + tl.arange(0, BZ)
    begin = sequence * 0
    end = begin + tokens
    own_scores = (batch * H + head) * chunks
    if PACKED:
        begin = tl.load(cu_seqlens + sequence).to(tl.int64)
        end = tl.load(cu_seqlens + sequence + 1).to(tl.int64)
        own_scores += tl.load(first_chunk + sequence)
    gate_head = head // (H // HD)
    x += (batch * tokens * HX + head // (H // HX)) * X
    y += (batch * tokens * HY + head // (H // HY)) * X
    z += (batch * tokens * HZ + head // (H // HZ)) * Z
    out += (((part * batches + batch) * tokens) * H + head) * Z
    cells = place * X * Z + cols_x[:, None] * STRIDE_X + cols_z[None, :] * STRIDE_Z
    inside = (cols_x < X)[:, None] & (cols_z < Z)[None, :]

    state = tl.zeros([BX, BZ], tl.float32)
    if initial is not None:
        state += tl.load(initial + cells, mask=inside, other=0.0).to(tl.float32)
    count = ((end - begin + SIZE - 1) // SIZE).to(tl.int32)
    for step in range(count):
        chunk = count - 1 - step if REVERSE else step
        start = begin + chunk * SIZE
        stop = tl.minimum(start + SIZE, end)
        rows = start + tl.arange(0, SIZE)
        reading = load_tile(x, rows, stop, HX * X, cols_x, X)
        written = load_tile(y, rows, stop, HY * X, cols_x, X)
        carried = load_tile(z, rows, stop, HZ * Z, cols_z, Z).to(DOT)
        since, until, total = decay_factors(
            gates, batch, start, stop, tokens, gate_head, cols_x, DECAY, GATE_BATCH, HD, X, SIZE
        )
        if REVERSE:
            at_reading = until
            at_writing = since * scale
        else:
            at_reading = since * scale
            at_writing = until
        if DECAY == 3:
            # whole already: the first slice adds it
            inner = load_scores(scores + (own_scores + chunk) * SIZE * SIZE, SIZE, REVERSE)
            inner = tl.where(part == 0, inner, 0.0)
        else:
            inner = tl.dot(reading.to(DOT), tl.trans(written.to(DOT)), input_precision=PRECISION)
            inner *= decay_mask(gates, batch, start, stop, tokens, gate_head, DECAY, GATE_BATCH, HD, SIZE, REVERSE)
        result = scale * tl.dot(inner.to(DOT), carried, input_precision=PRECISION)
        if DECAY == 3:
            decayed = (reading.to(tl.float32) * at_reading).to(DOT)
            result += tl.dot(decayed, state.to(DOT), input_precision=PRECISION)
        else:
            result += at_reading * tl.dot(reading.to(DOT), state.to(DOT), input_precision=PRECISION)
        filled = (rows < stop)[:, None] & (cols_z < Z)[None, :]
        tl.store(out + rows[:, None] * (H * Z) + cols_z[None, :], result.to(out.dtype.element_ty), mask=filled)
        decayed = (written.to(tl.float32) * at_writing).to(DOT)
        state = state * total[:, None] + tl.dot(tl.trans(decayed), carried, input_precision=PRECISION)
    tl.store(final + cells, state, mask=inside)
