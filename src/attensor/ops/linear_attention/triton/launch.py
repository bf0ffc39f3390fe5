"""One function a kernel: allocates what it writes and starts it. Tensors are those of a `Plan`."""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from attensor.ops.linear_attention.triton.gates import gates_kernel
from attensor.ops.linear_attention.triton.inside import inside_kernel
from attensor.ops.linear_attention.triton.on_chip import on_chip_kernel
from attensor.ops.linear_attention.triton.plan import Plan
from attensor.ops.linear_attention.triton.read import read_kernel
from attensor.ops.linear_attention.triton.recurrent import recurrent_kernel
from attensor.ops.linear_attention.triton.scan import scan_kernel
from attensor.ops.linear_attention.triton.scores import BLOCK, scores_kernel
from attensor.ops.linear_attention.triton.tuning import INTERPRETED, padded

__all__ = ["decode", "gate_gradient", "on_chip", "read", "recurrent", "scan", "score_gradient", "scores"]

# rows of the state that one program of the on-chip schedule keeps; a small tile in the interpreter tests the slices
_SLICE = 32 if INTERPRETED else 128
_STATE = 8192  # numbers of the state in one program of the recurrent kernel: 64 registers a thread


def _tiles(size: int, tile: int) -> int:
    return int(triton.cdiv(size, tile))


def scan(
    plan: Plan, x: Tensor, z: Tensor, initial: Tensor | None, scale: float, dtype: torch.dtype, *, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """States at all borders of chunks [B, H, slots, K, V] in `dtype`, and the last ones [R, B, H, K, V]."""
    slots = plan.chunks + plan.rows
    shape = (plan.key_dim, plan.value_dim)
    states = x.new_empty((plan.batch, plan.heads, slots, *shape), dtype=dtype)
    final = x.new_empty((plan.rows, plan.batch, plan.heads, *shape), dtype=torch.float32)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        tiles = _tiles(plan.key_dim, meta["BK"]) * _tiles(plan.value_dim, meta["BV"])
        return (tiles * plan.rows * plan.batch * plan.heads,)

    sizes = {"K": plan.key_dim, "V": plan.value_dim, "REVERSE": reverse}
    scan_kernel[grid](
        x, z, plan.gates, initial, states, final, plan.table, plan.first_chunk, scale, plan.tokens, plan.chunks, slots,
        plan.batch, **plan.common({"HX": x, "HZ": z}), **sizes,
    )  # fmt: skip
    return states, final


def read(
    plan: Plan,
    tensors: tuple[Tensor, Tensor, Tensor],
    states: Tensor,
    scale: float,
    dtype: torch.dtype,
    *,
    scores: Tensor | None = None,
    transposed: bool = False,
    reverse: bool = False,
) -> Tensor:
    """What x reads of y, z and the states, [B, T, H, Z] in `dtype`; see `read`.

    Args:
        plan, scale: of the call.
        tensors: x, y, z.
        states: [B, H, slots, K, V]; its columns are the rows of z's states when `transposed`.
        dtype: of the result.
        scores: [B, H, chunks, SIZE, SIZE], for a decay per key channel; without them only the states are read.
        transposed: as above.
        reverse: against the direction of time.
    """
    x, y, z = tensors
    out = plan.new((plan.batch, plan.tokens, plan.heads, z.shape[-1]), dtype)
    slots = plan.chunks + plan.rows

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (_tiles(z.shape[-1], meta["BZ"]) * plan.chunks * plan.batch * plan.heads,)

    sizes = _strides(plan, transposed) | {"REVERSE": reverse, "INPUT": scores is not None}
    read_kernel[grid](
        x, y, z, plan.gates, states, scores, out, plan.table, scale, plan.tokens, plan.chunks, slots,
        **plan.common({"HX": x, "HY": y, "HZ": z}), **sizes,
    )  # fmt: skip
    return out


def on_chip(
    plan: Plan,
    tensors: tuple[Tensor, Tensor, Tensor],
    initial: Tensor | None,
    scale: float,
    dtype: torch.dtype,
    *,
    scores: Tensor | None = None,
    transposed: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """`scan` and `read` in one kernel: the result, and the last states [R, B, H, K, V]; arguments as theirs."""
    x, y, z = tensors
    tile = min(_SLICE, padded(x.shape[-1]))
    slices = _tiles(x.shape[-1], tile)
    shape = (slices, plan.batch, plan.tokens, plan.heads, z.shape[-1])
    out = plan.new(shape, dtype if slices == 1 else torch.float32)
    state_shape = (plan.rows, plan.batch, plan.heads, plan.key_dim, plan.value_dim)
    final = x.new_empty(state_shape, dtype=torch.float32)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (_tiles(z.shape[-1], meta["BZ"]) * slices * plan.rows * plan.batch * plan.heads,)

    sizes = _strides(plan, transposed) | {"REVERSE": reverse, "BX": tile}
    on_chip_kernel[grid](
        x, y, z, plan.gates, initial, scores, out, final, plan.cu_seqlens, plan.first_chunk, scale,
        plan.tokens, plan.chunks, plan.batch, **plan.common({"HX": x, "HY": y, "HZ": z}), **sizes,
    )  # fmt: skip
    return out[0] if slices == 1 else out.sum(0).to(dtype), final


def _strides(plan: Plan, transposed: bool) -> dict[str, int]:
    """Sizes and strides of states as [X, Z]."""
    if transposed:
        return {"X": plan.value_dim, "Z": plan.key_dim, "STRIDE_X": 1, "STRIDE_Z": plan.value_dim}
    return {"X": plan.key_dim, "Z": plan.value_dim, "STRIDE_X": plan.value_dim, "STRIDE_Z": 1}


def scores(plan: Plan, x: Tensor, y: Tensor, *, decayed: bool) -> Tensor:
    """x_i . y_j for j <= i of each chunk, [B, H, chunks, SIZE, SIZE] in float32; `decayed` per key channel."""
    size = plan.chunk_size
    out = x.new_empty((plan.batch, plan.heads, plan.chunks, size, size), dtype=torch.float32)
    common = plan.common({"HX": x, "HY": y})
    common = {n: common[n] for n in ("H", "HX", "HY", "HD", "SIZE", "PACKED", "PRECISION")}
    scores_kernel[(size // BLOCK * plan.chunks * plan.batch * plan.heads,)](
        x, y, plan.gates, out, plan.table, plan.tokens, plan.chunks,
        X=x.shape[-1], DECAY=3 if decayed else 0, BLOCK=BLOCK, **common,
    )  # fmt: skip
    return out


def score_gradient(
    plan: Plan, other: Tensor, grad_scores: Tensor, outer: Tensor, scale: float, dtype: torch.dtype, *, reverse: bool
) -> Tensor:
    """`outer` and what the decayed scores give to queries (other: keys) or, reversed, to keys: [B, T, H, K]."""
    out = plan.new(tuple(outer.shape), dtype)
    blocks = plan.chunk_size // BLOCK

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (_tiles(plan.key_dim, meta["BK"]) * blocks * plan.chunks * plan.batch * plan.heads,)

    common = plan.common({"HO": other})
    common = {n: common[n] for n in ("H", "HO", "HD", "SIZE", "PACKED", "PRECISION")}
    inside_kernel[grid](
        other, plan.gates, grad_scores, outer, out, plan.table, scale, plan.tokens, plan.chunks,
        K=plan.key_dim, BLOCK=BLOCK, REVERSE=reverse, **common,
    )  # fmt: skip
    return out


def gate_gradient(plan: Plan, grad_q: Tensor, grad_k: Tensor, states: Tensor, grad_states: Tensor) -> Tensor:
    """Gradient of every token's log decay for each query head, [B, T, H] or [B, T, H, K] in float32."""
    is_channel = plan.decay == 3
    shape = (plan.batch, plan.tokens, plan.heads, plan.key_dim)
    out = plan.new(shape if is_channel else shape[:3], torch.float32)
    tile, tile_v = (min(32 if INTERPRETED else 64, padded(size)) for size in (plan.key_dim, plan.value_dim))
    programs = _tiles(plan.key_dim, tile) if is_channel else 1
    gates_kernel[(programs * plan.chunks * plan.batch * plan.heads,)](
        plan.q, plan.k, grad_q, grad_k, states, grad_states, out, plan.table, plan.tokens, plan.chunks,
        plan.chunks + plan.rows, H=plan.heads, HK=plan.k.shape[2], K=plan.key_dim, V=plan.value_dim, CHANNEL=is_channel,
        SIZE=plan.chunk_size, PACKED=plan.cu_seqlens is not None, BK=tile, BV=tile_v,
    )  # fmt: skip
    return out


def recurrent(plan: Plan, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Token by token: the output [B, T, H, V] and the final states [R, B, H, K, V]."""
    out = plan.new((plan.batch, plan.tokens, plan.heads, plan.value_dim), dtype)
    shape = (plan.rows, plan.batch, plan.heads, plan.key_dim, plan.value_dim)
    final = out.new_empty(shape, dtype=torch.float32)
    _start_recurrent(plan, plan.initial, out, final, None, scale)
    return out, final


def decode(plan: Plan, pool: Tensor, slots: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """One token with states in the slots of a contiguous pool [S, H, K, V], changed in place: [B, 1, H, V]."""
    out = plan.new((plan.batch, 1, plan.heads, plan.value_dim), dtype)
    _start_recurrent(plan, pool, out, pool, slots, scale)
    return out


def _start_recurrent(
    plan: Plan, initial: Tensor | None, out: Tensor, final: Tensor, slots: Tensor | None, scale: float
) -> None:
    rows = triton.next_power_of_2(plan.key_dim)
    tile = min(triton.next_power_of_2(plan.value_dim), 32, max(1, _STATE // rows))
    grid = (_tiles(plan.value_dim, tile) * plan.rows * plan.batch * plan.heads,)
    common = plan.common({"HK": plan.k})
    common = {n: common[n] for n in ("H", "HK", "HD", "DECAY", "GATE_BATCH", "PACKED")}
    recurrent_kernel[grid](
        plan.q, plan.k, plan.v, plan.gates, initial, out, final, plan.cu_seqlens, slots, scale, plan.tokens,
        plan.batch, K=plan.key_dim, V=plan.value_dim, SLOTS=slots is not None, BK=rows, BV=tile, **common,
        num_warps=4 if rows * tile >= 2048 else 1,
    )  # fmt: skip
