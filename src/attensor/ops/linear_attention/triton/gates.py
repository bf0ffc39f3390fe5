r"""Gradients of the log decays from those of queries and keys.

    dg_t = sum_{i >= t} (q_i dq_i - k_i dk_i) + sum_v S E        i, t of one chunk

S is the state after the chunk and E its gradient: no product of tokens, K and V is ever formed, and rounding does not
add up over the sequence as it would in a sum over all later tokens.

Sizes: SIZE tokens in a chunk; K and V channels in tiles of BK and BV; dq, dk and the result for H query heads.
Source: arXiv:2312.06635, appendix C, with the gradient of the final state.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from attensor.ops.linear_attention.triton.device import chunk_place, load_tile

__all__ = ["gates_kernel"]


@triton.jit(do_not_specialize=["tokens", "chunks", "slots"])
def gates_kernel(
    q, k, grad_q, grad_k, states, grad_states, out, table, tokens, chunks, slots,
    H: tl.constexpr, HK: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    CHANNEL: tl.constexpr, SIZE: tl.constexpr, PACKED: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """One (batch, head, chunk, K tile; all of K unless CHANNEL); out [B, T, H, K if CHANNEL]."""
    tiles: tl.constexpr = tl.cdiv(K, BK)
    programs: tl.constexpr = tiles if CHANNEL else 1
    program = tl.program_id(0)
    place = (program // programs).to(tl.int64)  # (batch, head, chunk)
    batch, head, start, stop, slot = chunk_place(table, place, chunks, tokens, H, SIZE, PACKED)
    if stop <= start:
        return
    rows = start + tl.arange(0, SIZE)
    q += (batch * tokens * H + head) * K
    k += (batch * tokens * HK + head // (H // HK)) * K
    grad_q += (batch * tokens * H + head) * K
    grad_k += (batch * tokens * H + head) * K
    after = ((batch * H + head) * slots + slot + 1) * K * V

    if CHANNEL:
        columns = program % programs * BK + tl.arange(0, BK)
        terms = _terms(q, k, grad_q, grad_k, rows, stop, columns, H, HK, K)
        at_end = _at_end(states + after, grad_states + after, columns, K, V, BK, BV)
        result = tl.cumsum(terms, 0, reverse=True) + at_end[None, :]
        inside = (rows < stop)[:, None] & (columns < K)[None, :]
        cells = (batch * tokens * H + head) * K + rows[:, None] * (H * K) + columns[None, :]
        tl.store(out + cells, result, mask=inside)
    else:
        total = tl.zeros([SIZE], tl.float32)
        last = tl.zeros([BK], tl.float32)
        for tile in range(tiles):
            columns = tile * BK + tl.arange(0, BK)
            total += tl.sum(_terms(q, k, grad_q, grad_k, rows, stop, columns, H, HK, K), 1)
            last += _at_end(states + after, grad_states + after, columns, K, V, BK, BV)
        result = tl.cumsum(total, 0, reverse=True) + tl.sum(last, 0)
        tl.store(out + (batch * tokens + rows) * H + head, result, mask=rows < stop)


@triton.jit
def _terms(q, k, grad_q, grad_k, rows, stop, columns, H: tl.constexpr, HK: tl.constexpr, K: tl.constexpr):
    """q dq - k dk, [rows, columns]."""
    queries = load_tile(q, rows, stop, H * K, columns, K).to(tl.float32)
    keys = load_tile(k, rows, stop, HK * K, columns, K).to(tl.float32)
    from_queries = queries * load_tile(grad_q, rows, stop, H * K, columns, K)
    return from_queries - keys * load_tile(grad_k, rows, stop, H * K, columns, K)


@triton.jit
def _at_end(
    states, grad_states, columns, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr
):  # fmt: skip
    """sum_v S E, [columns], of states [K, V]."""
    result = tl.zeros([BK], tl.float32)
    for tile in range(tl.cdiv(V, BV)):
        cols_v = tile * BV + tl.arange(0, BV)
        state = load_tile(states, columns, K, V, cols_v, V)
        result += tl.sum(state * load_tile(grad_states, columns, K, V, cols_v, V), 1)
    return result
