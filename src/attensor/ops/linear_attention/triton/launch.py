"""One function a kernel: allocates what it writes and starts it. Tensors are those of a `Plan`."""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

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

__all__ = ["Reading", "decode", "gate_gradient", "on_chip", "read", "recurrent", "scan", "score_gradient", "scores"]

# rows of the state that one program of the on-chip schedule keeps; a small tile in the interpreter tests the slices
_SLICE = 32 if INTERPRETED else 128
_STATE = 8192  # numbers of the state in one program of the recurrent kernel: 64 registers a thread


def _start(kernel: Any, plan: Plan, programs: int, tiled: dict[str, int], /, num_warps: int = 4, **own: Any) -> None:
    """Start a kernel with what it asks for by name, of its `own` or of the plan; Hx is the number of heads of own x.

    Args:
        kernel, plan: which kernel, and what for.
        programs: as many for each tile.
        tiled: name of a tile's size -> the size that is cut into such tiles.
        num_warps: where it is not tuned.
        own: arguments, by name.
    """
    heads = {f"H{name[0].upper()}": own[name].shape[2] for name in ("x", "y", "z", "k", "other") if name in own}
    given = plan.arguments | heads | own
    named = {name: given[name] for name in kernel.arg_names if name in given}
    if not hasattr(kernel, "configs"):
        named["num_warps"] = num_warps
    kernel[lambda meta: (programs * prod(_tiles(size, meta[name]) for name, size in tiled.items()),)](**named)


def _tiles(size: int, tile: int) -> int:
    return int(triton.cdiv(size, tile))


def scan(
    plan: Plan, x: Tensor, z: Tensor, initial: Tensor | None, scale: float, dtype: torch.dtype, *, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """States at all borders of chunks [B, H, slots, K, V] in `dtype`, and the last ones [R, B, H, K, V]."""
    shape = (plan.heads, plan.chunks + plan.rows, plan.key_dim, plan.value_dim)
    states, final = x.new_empty((plan.batch, *shape), dtype=dtype), plan.new_states()
    _start(
        scan_kernel, plan, plan.sequences, {"BK": plan.key_dim, "BV": plan.value_dim},
        x=x, z=z, initial=initial, states=states, final=final, scale=scale, REVERSE=reverse,
    )  # fmt: skip
    return states, final


class Reading(NamedTuple):
    """What `read` and `on_chip` read: x of y, z and states, whose columns are the rows of z's when `transposed`."""

    x: Tensor
    y: Tensor
    z: Tensor
    transposed: bool = False
    reverse: bool = False  # against the direction of time

    def arguments(self, plan: Plan, scores: Tensor | None) -> dict[str, Any]:
        """Of both kernels; sizes and strides are those of states as [X, Z]."""
        sizes = [(plan.key_dim, plan.value_dim), (plan.value_dim, 1)]
        (x, z), (stride_x, stride_z) = (pair[::-1] for pair in sizes) if self.transposed else sizes
        shape = {"X": x, "Z": z, "STRIDE_X": stride_x, "STRIDE_Z": stride_z}
        return shape | {"x": self.x, "y": self.y, "z": self.z, "scores": scores, "REVERSE": self.reverse}


def read(
    plan: Plan, reading: Reading, states: Tensor, scale: float, dtype: torch.dtype, scores: Tensor | None = None
) -> Tensor:
    """What is read, [B, T, H, Z] in `dtype`; see `read`.

    Args:
        plan, reading, scale: of the call.
        states: [B, H, slots, K, V].
        dtype: of the result.
        scores: [B, H, chunks, SIZE, SIZE], for a decay per key channel; without them only the states are read.
    """
    size = reading.z.shape[-1]
    out = plan.new((plan.batch, plan.tokens, plan.heads, size), dtype)
    own = reading.arguments(plan, scores) | {"INPUT": scores is not None}
    _start(read_kernel, plan, plan.places, {"BZ": size}, states=states, out=out, scale=scale, **own)
    return out


def on_chip(
    plan: Plan, reading: Reading, initial: Tensor | None, scale: float, dtype: torch.dtype, scores: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`scan` and `read` in one kernel: the result, and the last states [R, B, H, K, V]; arguments as theirs."""
    width, size = reading.x.shape[-1], reading.z.shape[-1]
    tile = min(_SLICE, padded(width))
    slices = _tiles(width, tile)
    out = plan.new((slices, plan.batch, plan.tokens, plan.heads, size), dtype if slices == 1 else torch.float32)
    final = plan.new_states()
    own = reading.arguments(plan, scores) | {"initial": initial, "out": out, "final": final, "BX": tile}
    _start(on_chip_kernel, plan, slices * plan.sequences, {"BZ": size}, scale=scale, **own)
    return out[0] if slices == 1 else out.sum(0).to(dtype), final


def scores(plan: Plan, x: Tensor, y: Tensor, *, decayed: bool) -> Tensor:
    """x_i . y_j for j <= i of each chunk, [B, H, chunks, SIZE, SIZE] in float32; `decayed` per key channel."""
    size = plan.chunk_size
    out = x.new_empty((plan.batch, plan.heads, plan.chunks, size, size), dtype=torch.float32)
    own: dict[str, Any] = {
        "x": x,
        "y": y,
        "scores": out,
        "X": x.shape[-1],
        "DECAY": 3 if decayed else 0,
        "BLOCK": BLOCK,
    }
    _start(scores_kernel, plan, size // BLOCK * plan.places, {}, **own)
    return out


def score_gradient(
    plan: Plan, other: Tensor, grad_scores: Tensor, outer: Tensor, scale: float, dtype: torch.dtype, *, reverse: bool
) -> Tensor:
    """`outer` and what the decayed scores give to queries (other: keys) or, reversed, to keys: [B, T, H, K]."""
    out = plan.new(tuple(outer.shape), dtype)
    _start(
        inside_kernel, plan, plan.chunk_size // BLOCK * plan.places, {"BK": plan.key_dim}, other=other,
        grad_scores=grad_scores, outer=outer, out=out, scale=scale, REVERSE=reverse, BLOCK=BLOCK,
    )  # fmt: skip
    return out


def gate_gradient(plan: Plan, grad_q: Tensor, grad_k: Tensor, states: Tensor, grad_states: Tensor) -> Tensor:
    """Gradient of every token's log decay for each query head, [B, T, H] or [B, T, H, K] in float32."""
    is_channel = plan.decay == 3
    shape = (plan.batch, plan.tokens, plan.heads, plan.key_dim)
    out = plan.new(shape if is_channel else shape[:3], torch.float32)
    tile, tile_v = (min(32 if INTERPRETED else 64, padded(size)) for size in (plan.key_dim, plan.value_dim))
    _start(
        gates_kernel, plan, plan.places, {"BK": plan.key_dim} if is_channel else {}, q=plan.q, k=plan.k, grad_q=grad_q,
        grad_k=grad_k, states=states, grad_states=grad_states, out=out, CHANNEL=is_channel, BK=tile, BV=tile_v,
    )  # fmt: skip
    return out


def recurrent(plan: Plan, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Token by token: the output [B, T, H, V] and the final states [R, B, H, K, V]."""
    final = plan.new_states()
    return _recurrent(plan, plan.initial, final, None, scale, dtype), final


def decode(plan: Plan, pool: Tensor, slots: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """One token with states in the slots of a contiguous pool [S, H, K, V], changed in place: [B, 1, H, V]."""
    return _recurrent(plan, pool, pool, slots, scale, dtype)


def _recurrent(
    plan: Plan, initial: Tensor | None, final: Tensor, slots: Tensor | None, scale: float, dtype: torch.dtype
) -> Tensor:
    out = plan.new((plan.batch, plan.tokens, plan.heads, plan.value_dim), dtype)
    rows = triton.next_power_of_2(plan.key_dim)
    tile = min(triton.next_power_of_2(plan.value_dim), 32, max(1, _STATE // rows))
    _start(
        recurrent_kernel, plan, plan.sequences, {"BV": plan.value_dim}, q=plan.q, k=plan.k, v=plan.v, initial=initial,
        out=out, final=final, slots=slots, scale=scale, SLOTS=slots is not None, BK=rows, BV=tile,
        num_warps=4 if rows * tile >= 2048 else 1,
    )  # fmt: skip
    return out
