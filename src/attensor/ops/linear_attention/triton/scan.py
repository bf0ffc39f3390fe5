r"""States at the borders of chunks, or (REVERSE) their gradients: the only kernel of the parallel schedule with a loop
over time.

    S <- total S + sum_j until_j x_j z_j^T                    x = k, z = v
    E <- total E + scale sum_i since_i x_i z_i^T              x = q, z = dO, last chunk first

Sizes: SIZE tokens in a chunk, K and V channels in tiles of BK and BV.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from attensor.ops.linear_attention.triton.device import chunk_place, decay_factors, load_tile
from attensor.ops.linear_attention.triton.tuning import operand_width, tuned

__all__ = ["scan_kernel"]


def _shared(sizes: Mapping[str, Any]) -> tuple[int, int]:
    gates = 8 * sizes["BK"] if sizes["DECAY"] == 3 else 0
    tiles = (sizes["BK"] + sizes["BV"]) * operand_width(sizes["DOT"])
    return sizes["SIZE"] * (tiles + gates), 4 * sizes["BK"] * sizes["BV"] + sizes["SIZE"] * tiles


@tuned({"BK": (32, 64), "BV": (32, 64)}, {"BK": "K", "BV": "V"}, _shared, ("DECAY", "K", "V", "SIZE", "DOT"))
@triton.jit(do_not_specialize=["tokens", "chunks", "slots", "batches"])
def scan_kernel(
    x, z, gates, initial, states, final, table, first_chunk, scale, tokens, chunks, slots, batches,
    H: tl.constexpr, HX: tl.constexpr, HZ: tl.constexpr, HD: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    DECAY: tl.constexpr, GATE_BATCH: tl.constexpr, SIZE: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """One (sequence, batch, head, K tile, V tile); states [B, H, slots, K, V], initial and final [R, B, H, K, V]."""
    tiles_v: tl.constexpr = tl.cdiv(V, BV)
    tiles: tl.constexpr = tl.cdiv(K, BK) * tiles_v
    program = tl.program_id(0)
    tile = program % tiles
    place = (program // tiles).to(tl.int64)  # (sequence, batch, head)
    head = place % H
    batch = place // H % batches
    sequence = place // H // batches
    cols_k = tile // tiles_v * BK + tl.arange(0, BK)
    cols_v = tile % tiles_v * BV + tl.arange(0, BV)
    inside = (cols_k < K)[:, None] & (cols_v < V)[None, :]
    cells = cols_k[:, None] * V + cols_v[None, :]
    first = sequence * 0
    count = chunks
    if PACKED:
        first = tl.load(first_chunk + sequence)
        count = (tl.load(first_chunk + sequence + 1) - first).to(tl.int32)
    # a sequence of n chunks has n + 1 slots
    own_states = states + ((batch * H + head) * slots + first + sequence) * K * V + cells
    x += (batch * tokens * HX + head // (H // HX)) * K
    z += (batch * tokens * HZ + head // (H // HZ)) * V

    state = tl.zeros([BK, BV], tl.float32)
    if initial is not None:
        state += tl.load(initial + place * K * V + cells, mask=inside, other=0.0).to(tl.float32)
    for step in range(count):
        local = count - 1 - step if REVERSE else step
        slot = first * 0 + local + (1 if REVERSE else 0)
        tl.store(own_states + slot * K * V, state.to(states.dtype.element_ty), mask=inside)
        _, _, start, stop, _ = chunk_place(table, first + local, chunks, tokens, H, SIZE, PACKED)
        rows = start + tl.arange(0, SIZE)
        written = load_tile(x, rows, stop, HX * K, cols_k, K).to(tl.float32)
        carried = load_tile(z, rows, stop, HZ * V, cols_v, V).to(DOT)
        since, until, total = decay_factors(
            gates, batch, start, stop, tokens, head // (H // HD), cols_k, DECAY, GATE_BATCH, HD, K, SIZE
        )
        if REVERSE:
            written *= since * scale
        else:
            written *= until
        state = state * total[:, None] + tl.dot(tl.trans(written.to(DOT)), carried, input_precision=PRECISION)
    slot = first * 0 + (0 if REVERSE else count)
    tl.store(own_states + slot * K * V, state.to(states.dtype.element_ty), mask=inside)
    tl.store(final + place * K * V + cells, state, mask=inside)
