r"""What one chunk is made of, for all kernels of `linear_attention`.

With g the log decays and i, j, t tokens of one chunk (q, k, v: read, written, carried; time may run backwards):

    since_i = exp(sum_{t <= i} g_t)        until_j = exp(sum_{t > j} g_t)        total = exp(sum_t g_t)
    mask_ij = exp(sum_{j < t <= i} g_t) for j <= i, else 0

Every exponent is a sum of log decays, never a difference of sums: none is positive, a gate of -inf is no nan, and a
large gate costs its neighbours no digits.

DECAY: 0 none, 1 constant [Hd], 2 scalar [B, T, Hd], 3 per key channel [B, T, Hd, K].
Sizes: SIZE tokens in a chunk, B, T, H as everywhere. Tensors are contiguous [B, T, heads, D].
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["chunk_place", "constant_gate", "decay_factors", "decay_mask", "diagonal_decay", "load_gates", "load_tile"]


@triton.jit
def chunk_place(table, place, chunks, tokens, H: tl.constexpr, SIZE: tl.constexpr, PACKED: tl.constexpr):
    """Batch, head, first token, last token (exclusive) and state slot of a (batch, head, chunk); table when PACKED."""
    chunk = place % chunks
    if PACKED:
        start = tl.load(table + 3 * chunk)
        stop = tl.load(table + 3 * chunk + 1)
        slot = tl.load(table + 3 * chunk + 2)
    else:
        start = chunk * SIZE
        stop = tl.minimum(start + SIZE, tokens)
        slot = chunk
    return place // chunks // H, place // chunks % H, start, stop, slot


@triton.jit
def load_tile(base, rows, stop, stride, columns, width):
    """[rows, columns] of a matrix with this row stride; zeros from row `stop` and column `width` on."""
    inside = (rows < stop)[:, None] & (columns < width)[None, :]
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def load_gates(gates, batch, rows, stop, tokens, head, HD: tl.constexpr):
    """[rows] log decays of one head, from [B, T, Hd]; 0 from row `stop` on."""
    return tl.load(gates + (batch * tokens + rows) * HD + head, mask=rows < stop, other=0.0).to(tl.float32)


@triton.jit
def constant_gate(gates, batch, head, GATE_BATCH: tl.constexpr, HD: tl.constexpr):
    """The log decay of one head, from [B or 1, Hd]."""
    row = batch if GATE_BATCH else batch * 0
    return tl.load(gates + row * HD + head).to(tl.float32)


@triton.jit
def _times(count, gate):
    """count * gate for count > 0, else 0: no product of 0 and -inf is formed."""
    return tl.where(count > 0, tl.maximum(count, 1.0) * gate, 0.0)


@triton.jit
def decay_factors(
    gates, batch, start, stop, tokens, head, columns,
    DECAY: tl.constexpr, GATE_BATCH: tl.constexpr, HD: tl.constexpr, K: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """since [SIZE, columns or 1], until [SIZE, columns or 1], total [columns or 1] of one chunk."""
    rows = start + tl.arange(0, SIZE)
    if DECAY == 0:
        since = tl.full([SIZE, 1], 1.0, tl.float32)
        until = since
        total = tl.full([1], 1.0, tl.float32)
    elif DECAY == 1:
        gate = constant_gate(gates, batch, head, GATE_BATCH, HD)
        since = tl.exp((rows - start + 1).to(tl.float32) * gate)[:, None]
        until = tl.exp(_times((stop - 1 - rows).to(tl.float32), gate))[:, None]
        total = tl.exp((stop - start).to(tl.float32) * gate + tl.full([1], 0.0, tl.float32))
    elif DECAY == 2:
        own = load_gates(gates, batch, rows, stop, tokens, head, HD)
        following = load_gates(gates, batch, rows + 1, stop, tokens, head, HD)
        since = tl.exp(tl.cumsum(own, 0))[:, None]
        until = tl.exp(tl.cumsum(following, 0, reverse=True))[:, None]
        total = tl.exp(tl.sum(own, 0) + tl.full([1], 0.0, tl.float32))
    else:
        base = gates + (batch * tokens * HD + head) * K
        own = load_tile(base, rows, stop, HD * K, columns, K).to(tl.float32)
        following = load_tile(base, rows + 1, stop, HD * K, columns, K).to(tl.float32)
        since = tl.exp(tl.cumsum(own, 0))
        until = tl.exp(tl.cumsum(following, 0, reverse=True))
        total = tl.exp(tl.sum(own, 0))
    return since, until, total


@triton.jit
def decay_mask(
    gates, batch, start, stop, tokens, head,
    DECAY: tl.constexpr, GATE_BATCH: tl.constexpr, HD: tl.constexpr, SIZE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """mask [SIZE, SIZE] (see the top), transposed when REVERSE; DECAY is not 3."""
    place = tl.arange(0, SIZE)
    if REVERSE:
        later = place[None, :]
        earlier = place[:, None]
    else:
        later = place[:, None]
        earlier = place[None, :]
    if DECAY == 0:
        exponent = tl.zeros([SIZE, SIZE], tl.float32)
    elif DECAY == 1:
        gate = constant_gate(gates, batch, head, GATE_BATCH, HD)
        exponent = _times((later - earlier).to(tl.float32), gate)
    else:
        gate = load_gates(gates, batch, start + place, stop, tokens, head, HD)
        if REVERSE:
            exponent = tl.cumsum(tl.where(later > earlier, gate[None, :], 0.0), 1)
        else:
            exponent = tl.cumsum(tl.where(later > earlier, gate[:, None], 0.0), 0)
    return tl.where(later >= earlier, tl.exp(exponent), 0.0)


@triton.jit
def diagonal_decay(decay, index, place, base, first, stop, stride, columns, width, REVERSE: tl.constexpr):
    """From the decays between each token of a block and token `index + 1` to those between it and token `index`.

    When REVERSE: from `index - 1` to `index`. `decay` [block, columns] starts as ones; `place` numbers the block's
    tokens, `first` is its first one. One exponential a channel, no difference of sums.
    """
    if REVERSE:
        row = first + index
        reached = place < index
    else:
        row = first + index + 1
        reached = place > index
    gate = tl.load(base + row * stride + columns, mask=(columns < width) & (row < stop), other=0.0).to(tl.float32)
    return tl.where(reached[:, None], decay * tl.exp(gate)[None, :], decay)
