r"""Routed attention: softmax attention in which every query asks some heads alone, each weighed by a gate.

    o_ih = g_ih sum_j softmax_j(scale * q_ih . k_j) v_j,   0 without any computation where g_ih = 0

    dense:     all heads of all queries, times the gates
    gathered:  of each head the queries that asked it, in rows one below the other; keys and values of a head that no
               query of the sequence asked are not read

Both are the same function. Sizes: B batch, Tq queries, Tk keys, H query heads, Hkv key/value heads (query head h reads
h // (H / Hkv)), K key dim, V value dim.
Source: arXiv:2410.11842, equations 4 and 5.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from attensor.errors import ShapeError
from attensor.ops._checks import (
    check_broadcast,
    check_cu_seqlens,
    check_devices,
    check_float,
    check_qkv,
    checked,
    scale_of,
)
from attensor.ops._operator import Implementation, Operator, reference_of
from attensor.ops._precision import full_precision, working_dtype
from attensor.ops.merge import merge_attention
from attensor.ops.softmax_attention import softmax_attention
from attensor.ops.softmax_attention.reference import additive_mask, dense

__all__ = ["routed_attention", "routed_attention_reference"]

_NAME = "routed_attention"
_ROWS = 256  # of a head, attended together where later keys are hidden
# pairs of a query and a key from which on gathering pays for itself (a head costs some 0.1 ms), measured on a CPU
_FEW_QUERIES, _LEAST_PAIRS, _LEAST_KEYS = 8, 2**16, 2**11


@dataclass(frozen=True)
class Problem:
    """Arguments of `routed_attention`, by the same names."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor
    scale: float
    is_causal: bool
    attn_mask: Tensor | None
    cu_seqlens: Tensor | None
    form: str | None


@checked
def routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    form: Literal["gathered", "dense"] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Softmax attention of the heads that each query asks: cost falls with the share of gates that are zero.

    Args:
        q: [B, Tq, H, K], any floating dtype; where the gate is 0 it is not read.
        k: [B, Tk, Hkv, K]; Hkv divides H.
        v: [B, Tk, Hkv, V].
        gates: [B, Tq, H], what multiplies a head's output, in any floating dtype; or bool, True as 1 and False as 0.
        scale: multiplies q k; `K ** -0.5` if None.
        is_causal: query i sees keys up to i + Tk - Tq, so that the last query sees every key.
        attn_mask: broadcasts to [B, H, Tq, Tk]; bool (True = attend) or floating (added to the scores).
        cu_seqlens: [N + 1], where the packed sequences start and end; needs B = 1 and Tq = Tk.
        form: `"gathered"` or `"dense"`; by the sizes if None. What is traced or transformed is dense.
        backend: `"reference"` or `"torch"`; the best available if None.
    Returns:
        [B, Tq, H, V] in q's dtype; 0 where the gate is 0 or a query may attend to nothing. Derivatives of any order; a
        gate of 0 has none.
    Raises:
        ShapeError: sizes disagree, or the tensors look like [B, H, T, D].
        TypeError: dtypes differ or are not floating. ValueError: devices differ.
    Cost: 2 A Tq Tk (K + V) operations for A heads a query on average; causal, half of them.
    Source: arXiv:2410.11842, equation 5; arXiv:2410.11842's own code computes all heads and multiplies by zeros.
    """
    check_qkv(_NAME, q, k, v)
    _check(q, k, gates, attn_mask, cu_seqlens)
    k, v = k.to(q.dtype), v.to(q.dtype)  # of one dtype, but under autocast
    with full_precision(q):
        return _OPERATOR(Problem(q, k, v, gates, scale_of(q, scale), is_causal, attn_mask, cu_seqlens, form), backend)


routed_attention_reference = reference_of(routed_attention, "All heads of all queries, all scores in memory.")


def _check(q: Tensor, k: Tensor, gates: Tensor, attn_mask: Tensor | None, cu_seqlens: Tensor | None) -> None:
    """What says which keys a query sees, with which head."""
    _check_gates(gates, q)
    if attn_mask is not None:
        check_devices(_NAME, q, attn_mask=attn_mask)
        check_broadcast(_NAME, "attn_mask", attn_mask, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    if cu_seqlens is not None:
        check_cu_seqlens(_NAME, cu_seqlens, q)
        if q.shape[1] != k.shape[1]:
            raise ShapeError(f"{_NAME}: with cu_seqlens k must have the {q.shape[1]} tokens of q, got {k.shape[1]}.")


def _check_gates(gates: Tensor, q: Tensor) -> None:
    check_devices(_NAME, q, gates=gates)
    if gates.shape != q.shape[:-1]:
        hint = (
            " Laid out as [B, H, T]? Call .transpose(1, 2) first."
            if gates.ndim == 3 and gates.mT.shape == q.shape[:-1]
            else ""
        )
        raise ShapeError(f"{_NAME}: gates must be [B, Tq, H] = {list(q.shape[:-1])}, got {list(gates.shape)}.{hint}")
    if gates.dtype != torch.bool:
        check_float(_NAME, "gates", gates, q)


def _define(x: Problem) -> Tensor:
    bounds = None if x.cu_seqlens is None else (x.cu_seqlens, x.cu_seqlens)
    mask = additive_mask(x.q, x.k, x.is_causal, x.attn_mask, bounds)
    return _weighed(dense(_asked(x), x.k, x.v, mask, x.scale)[0], x.gates)


def _asked(x: Problem) -> Tensor:
    """Queries, 0 where they ask nothing: what is not finite there reaches no gradient."""
    return torch.where((x.gates != 0)[..., None], x.q, 0.0)


def _weighed(out: Tensor, gates: Tensor) -> Tensor:
    """Outputs of heads [.., V] times their gates, 0 where that is 0."""
    return torch.where((gates != 0)[..., None], _times(out, gates), 0.0)


def _times(out: Tensor, gates: Tensor) -> Tensor:
    if gates.dtype == torch.bool:
        return out
    dtype = working_dtype(out)
    return (out.to(dtype) * gates.to(dtype)[..., None]).to(out.dtype)


def _torch(x: Problem) -> Tensor:
    return _gathered(x) if x.form != "dense" and _can_look(x.gates) and _is_worthwhile(x) else _dense(x)


def _can_look(gates: Tensor) -> bool:
    """Whether rows can be counted: no trace, no transform, no fake tensor; a mode that only counts may be on."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    modes = _get_current_dispatch_mode_stack()
    return (
        type(gates) in (Tensor, nn.Parameter)
        and not gates.is_meta
        and all(getattr(mode, "_mode_key", None) is None for mode in modes)
    )


def _is_worthwhile(x: Problem) -> bool:
    queries, keys = x.q.shape[1], x.k.shape[1]
    if x.form == "gathered":
        return True
    return keys >= _LEAST_KEYS if queries < _FEW_QUERIES else queries * keys >= _LEAST_PAIRS


def _dense(x: Problem) -> Tensor:
    return _weighed(_softmax(x, _asked(x), x.cu_seqlens), x.gates)


def _softmax(x: Problem, q: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    out: Tensor = softmax_attention(
        q,
        x.k,
        x.v,
        scale=x.scale,
        is_causal=x.is_causal,
        attn_mask=x.attn_mask,
        cu_seqlens=cu_seqlens,
        backend="torch",
    )
    return out


def _gathered(x: Problem) -> Tensor:
    if x.cu_seqlens is not None:
        return _sequences(x, x.cu_seqlens.tolist())
    group = x.q.shape[2] // x.k.shape[2]
    # heads in front that every query asks, as shared heads are: nothing to gather
    common = sum(1 for _ in itertools.takewhile(bool, (x.gates != 0).flatten(0, 1).all(0).tolist()))
    common -= common % group
    first, rest = _heads(x, 0, common), _heads(x, common, x.q.shape[2])
    parts = [_times(_softmax(first, first.q), first.gates)] if common else []
    if common < x.q.shape[2]:
        parts.append(_by_rows(rest))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _sequences(x: Problem, bounds: list[int]) -> Tensor:
    """Packed ones, one after the other."""
    outs = [x.v.new_zeros(1, 0, x.q.shape[2], x.v.shape[-1])]
    for start, stop in itertools.pairwise(bounds):
        cut = {name: getattr(x, name)[:, start:stop] for name in ("q", "k", "v", "gates")}
        outs.append(_gathered(replace(x, **cut, attn_mask=_square(x.attn_mask, start, stop), cu_seqlens=None)))
    return torch.cat(outs, 1)


def _square(mask: Tensor | None, start: int, stop: int) -> Tensor | None:
    """Of a mask, what one of the packed sequences sees of itself."""
    if mask is None:
        return None
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    rows, columns = (slice(start, stop) if size > 1 else slice(None) for size in mask.shape[2:])
    return mask[:, :, rows, columns]


def _heads(x: Problem, start: int, stop: int) -> Problem:
    group, mask = x.q.shape[2] // x.k.shape[2], x.attn_mask
    if mask is not None and mask.ndim > 2 and mask.shape[-3] > 1:
        mask = mask[..., start:stop, :, :]
    keys = slice(start // group, stop // group)
    q, gates = x.q[:, :, start:stop], x.gates[:, :, start:stop]
    return replace(x, q=q, k=x.k[:, :, keys], v=x.v[:, :, keys], gates=gates, attn_mask=mask)


def _by_rows(x: Problem) -> Tensor:
    """What a sequence asks of the heads that share keys, in rows by their place, one key head after the other."""
    batch, queries, heads, _ = x.q.shape
    keys = x.k.shape[2]
    apart = (keys, heads // keys)
    asked = torch.unflatten(x.gates != 0, 2, apart).transpose(1, 2)  # [B, Hkv, Tq, H / Hkv]
    row, key, place, head = asked.nonzero(as_tuple=True)
    head = key * apart[1] + head
    counts = asked.flatten(2).sum(2).flatten().tolist()
    of_keys, of_values = ([one for all_heads in t.unbind(0) for one in all_heads.unbind(1)] for t in (x.k, x.v))
    rows, outs = x.q[row, place, head], []
    for block in _blocks(counts, place, x):
        there = slice(block.start, block.stop)
        mask = _mask(x, block, head[there], place[there])
        pair = rows[there], of_keys[block.pair][: block.seen], of_values[block.pair][: block.seen]
        outs.append(_attend(x.scale, *pair, mask, block.free))
    # of no rows: no numbers, but a place in the graph of q, k and v
    nothing = [] if outs else [x.v[row, place, key] * (rows * x.k[row, place, key]).sum(-1, keepdim=True)]
    out = torch.cat(outs + nothing)
    whole = out.new_zeros(batch, queries, heads, x.v.shape[-1])
    return whole.index_put((row, place, head), _times(out, x.gates[row, place, head]))


class _Block(NamedTuple):
    """Rows that are attended together: from `start` to `stop`, of one sequence and key head, `pair`.

    They see `free` keys all, and up to `seen` keys some.
    """

    pair: int
    start: int
    stop: int
    free: int
    seen: int


def _blocks(counts: list[int], place: Tensor, x: Problem) -> list[_Block]:
    """Those of all sequences and key heads that have rows."""
    queries, keys = x.q.shape[1], x.k.shape[1]
    found = []
    for pair, (first, count) in enumerate(zip([0, *itertools.accumulate(counts)], counts)):
        size = _ROWS if x.is_causal else max(count, 1)
        found += [(pair, row, min(row + size, first + count)) for row in range(first, first + count, size)]
    if not x.is_causal or queries == 1:
        return [_Block(*block, keys, keys) for block in found]
    ends = torch.tensor([(start, stop - 1) for _, start, stop in found], dtype=torch.long, device=place.device)
    places = (place[ends.flatten()] + 1 + keys - queries).clamp_min(0).view(-1, 2).tolist()
    return [_Block(*block, *seen) for block, seen in zip(found, places)]


def _mask(x: Problem, block: _Block, head: Tensor, place: Tensor) -> Tensor | None:
    """What is hidden from some rows: [rows, seen], or of keys alone that not all see, [rows, seen - free]."""
    mask, queries, keys = x.attn_mask, x.q.shape[1], x.k.shape[1]
    if mask is not None:
        whole = mask.expand(x.q.shape[0], x.q.shape[2], queries, keys)
        mask = whole[block.pair // x.k.shape[2], head, place, : block.seen]
    if block.free == block.seen:
        return mask
    first = block.free if mask is None else 0
    past = torch.arange(first, block.seen, device=place.device) <= place[:, None] + (keys - queries)
    if mask is None:
        return past
    return mask & past if mask.dtype == torch.bool else mask.masked_fill(~past, float("-inf"))


def _attend(scale: float, rows: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, free: int) -> Tensor:
    """Rows [N, K], keys [seen, K] and values [seen, V] of one head: [N, V]; a mask may be of the last keys alone."""
    q, k, v = (x[None, :, None] for x in (rows, keys, values))
    options: dict[str, Any] = {"scale": scale, "backend": "torch"}
    if mask is None or mask.shape[1] == k.shape[1]:
        out = softmax_attention(q, k, v, attn_mask=mask, **options)
    else:  # a mask slows down all keys that it is about
        far = softmax_attention(q, k[:, :free], v[:, :free], return_lse=True, **options)
        near = softmax_attention(q, k[:, free:], v[:, free:], attn_mask=mask, return_lse=True, **options)
        out, _ = merge_attention(*zip(far, near))
    result: Tensor = out[0, :, 0]
    return result


_OPERATOR: Operator[Problem, Tensor] = Operator(
    _NAME, {"reference": Implementation(_define), "torch": Implementation(_torch)}
)
