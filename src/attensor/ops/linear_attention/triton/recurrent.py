r"""The recurrence token by token: decoding (one token, states in a pool of slots) and short sequences.

    S <- exp(g_t) S + k_t v_t^T        o_t = scale q_t S

Bound by reading and writing the state once; no matrix units, hence no smallest size.

Sizes: BK >= K rows of the state in one program, V columns in tiles of BV.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["recurrent_kernel"]


@triton.jit(do_not_specialize=["tokens", "batches"])
def recurrent_kernel(
    q, k, v, gates, initial, out, final, cu_seqlens, slots, scale, tokens, batches,
    H: tl.constexpr, HK: tl.constexpr, HD: tl.constexpr, K: tl.constexpr, V: tl.constexpr, DECAY: tl.constexpr,
    GATE_BATCH: tl.constexpr, PACKED: tl.constexpr, SLOTS: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """One (sequence, batch, head, V tile). With SLOTS, states are pools [S, H, K, V] and slots [B] says which."""
    tiles: tl.constexpr = tl.cdiv(V, BV)
    program = tl.program_id(0)
    place = (program // tiles).to(tl.int64)  # (sequence, batch, head)
    head = place % H
    batch = place // H % batches
    sequence = place // H // batches
    rows = tl.arange(0, BK)
    cols = program % tiles * BV + tl.arange(0, BV)
    in_rows = rows < K
    in_cols = cols < V
    begin = sequence * 0
    end = begin + tokens
    if PACKED:
        begin = tl.load(cu_seqlens + sequence).to(tl.int64)
        end = tl.load(cu_seqlens + sequence + 1).to(tl.int64)
    if SLOTS:
        slot = tl.load(slots + batch).to(tl.int64)
        if slot < 0:
            nothing = tl.zeros([BV], out.dtype.element_ty)
            tl.store(out + (batch * H + head) * V + cols, nothing, mask=in_cols)
            return
        place = slot * H + head
    cells = place * K * V + rows[:, None] * V + cols[None, :]
    inside = in_rows[:, None] & in_cols[None, :]
    state = tl.zeros([BK, BV], tl.float32)
    if initial is not None:
        state += tl.load(initial + cells, mask=inside, other=0.0).to(tl.float32)
    key_head = head // (H // HK)
    gate_head = head // (H // HD)
    if DECAY == 1:
        row = batch if GATE_BATCH else batch * 0
        constant = tl.exp(tl.load(gates + row * HD + gate_head).to(tl.float32))
    for t in range(begin, end):
        at = batch * tokens + t
        if DECAY == 1:
            state *= constant
        elif DECAY == 2:
            state *= tl.exp(tl.load(gates + at * HD + gate_head).to(tl.float32))
        elif DECAY == 3:
            gate = tl.load(gates + (at * HD + gate_head) * K + rows, mask=in_rows, other=0.0)
            state *= tl.exp(gate.to(tl.float32))[:, None]
        key = tl.load(k + (at * HK + key_head) * K + rows, mask=in_rows, other=0.0).to(tl.float32)
        value = tl.load(v + (at * HK + key_head) * V + cols, mask=in_cols, other=0.0).to(tl.float32)
        query = tl.load(q + (at * H + head) * K + rows, mask=in_rows, other=0.0).to(tl.float32)
        state += key[:, None] * value[None, :]
        result = scale * tl.sum(query[:, None] * state, 0)
        tl.store(out + (at * H + head) * V + cols, result.to(out.dtype.element_ty), mask=in_cols)
    tl.store(final + cells, state.to(final.dtype.element_ty), mask=inside)
