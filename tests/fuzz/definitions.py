"""The docstrings' formulas in numpy and float64, with plain loops; nothing of attensor is used.

Arguments are those of the operators, tensors as arrays; each returns the list of the operator's results.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = Any
__all__ = ["DEFINITIONS"]


def _attend(q: Array, k: Array, v: Array, scale: float, visible: Array, add: Array | float) -> tuple[Array, Array]:
    """Softmax attention of one head: [n, K], [m, K], [m, V]; 0 and -inf where nothing is visible."""
    out, lse = np.zeros((len(q), v.shape[1])), np.full(len(q), -math.inf)
    scores = np.where(visible, scale * (q @ k.T) + add, -math.inf)
    for i, row in enumerate(scores):
        top = row.max(initial=-math.inf)
        if top == -math.inf:
            continue
        weights = np.exp(row - top)
        out[i], lse[i] = weights @ v / weights.sum(), top + math.log(weights.sum())
    return out, lse


def _over_heads(
    a: dict[str, Any], visible: Callable[[int], Array], add: Callable[[int, int], Any], extra: bool = False
) -> list[Array]:
    """Softmax attention of [B, *space, H, K] with what each pair of flat tokens sees; lse if asked for."""
    q, k, v = (a[name].reshape(len(a[name]), -1, *a[name].shape[-2:]) for name in ("q", "k", "v"))
    batch, tokens, heads, width = q.shape
    scale = width**-0.5 if a.get("scale") is None else a["scale"]
    out, lse = np.zeros((batch, tokens, heads, v.shape[-1])), np.zeros((batch, tokens, heads))
    for b, h in itertools.product(range(batch), range(heads)):
        g = h // (heads // k.shape[2])
        keys, values = k[b, :, g], v[b, :, g]
        if extra:
            keys = np.concatenate([keys, a["additional_keys"][b, :, g]])
            values = np.concatenate([values, a["additional_values"][b, :, g]])
        out[b, :, h], lse[b, :, h] = _attend(q[b, :, h], keys, values, scale, visible(b), add(b, h))
    space = a["q"].shape[1:-2]
    results = [out.reshape(batch, *space, heads, -1), lse.reshape(batch, *space, heads)]
    return results if a.get("return_lse") else results[:1]


def _sequence_of(a: dict[str, Any], tokens: int) -> Array:
    """Number of the packed sequence of each token."""
    bounds = a.get("cu_seqlens")
    return np.zeros(tokens, int) if bounds is None else np.searchsorted(bounds, np.arange(tokens), side="right")


def softmax_attention(a: dict[str, Any]) -> list[Array]:
    queries, keys = a["q"].shape[1], a["k"].shape[1]
    i, j = np.arange(queries)[:, None], np.arange(keys)
    visible = np.ones((queries, keys), bool)
    bounds = a.get("cu_seqlens")
    if bounds is not None:
        of_queries, of_keys = bounds if isinstance(bounds, tuple) else (bounds, bounds)
        m, n = (np.searchsorted(x, np.arange(x[-1]), side="right") for x in (of_queries, of_keys))
        visible &= m[:, None] == n
        if a.get("is_causal"):  # counted from the end of each sequence
            visible &= (of_keys[n] - j) >= (of_queries[m] - i.T).T
    elif a.get("is_causal"):
        visible &= j <= i + keys - queries
    mask = a.get("attn_mask")
    if mask is not None:
        mask = np.broadcast_to(mask, (len(a["q"]), a["q"].shape[2], queries, keys))
        if mask.dtype == bool:
            mask = np.where(mask, 0.0, -math.inf)
    return _over_heads(a, lambda b: visible, lambda b, h: 0.0 if mask is None else mask[b, h])


def block_attention(a: dict[str, Any]) -> list[Array]:
    space = a["q"].shape[1:-2]
    size, pattern = a.get("block_size"), a["pattern"]
    cells = list(np.ndindex(*space))
    blocks, places = [], []
    for cell in cells:
        if pattern == "axial":
            axis = a["axis"] % len(space)
            blocks.append(tuple(x for n, x in enumerate(cell) if n != axis))
            places.append((cell[axis],))
            sides: Sequence[int] = (space[axis],)
            continue
        sides = size if isinstance(size, tuple) else (size,) * len(space)
        if pattern == "window":
            blocks.append(tuple(x // s for x, s in zip(cell, sides)))
            places.append(tuple(x % s for x, s in zip(cell, sides)))
        else:
            widths = [-(-n // s) for n, s in zip(space, sides)]
            blocks.append(tuple(x % w for x, w in zip(cell, widths)))
            places.append(tuple(x // w for x, w in zip(cell, widths)))
    number = np.array([np.ravel_multi_index(place, sides) for place in places])
    visible = np.array([[x == y for y in blocks] for x in blocks])
    if a.get("is_causal"):
        visible &= number <= number[:, None]
    mask, tokens = a.get("attn_mask"), math.prod(sides)
    if mask is not None:
        mask = np.broadcast_to(mask, (a["q"].shape[-2], tokens, tokens))
        if mask.dtype == bool:
            mask = np.where(mask, 0.0, -math.inf)
    return _over_heads(a, lambda b: visible, lambda b, h: 0.0 if mask is None else mask[h][number[:, None], number])


def _sees(i: int, j: int, n: int, window: int, dilation: int, stride: int, is_causal: bool, is_cut: bool) -> bool:
    """Whether query i sees key j along one axis."""
    if (i - j) % dilation:
        return False
    size = len(range(i % dilation, n, dilation))
    i, j = i // dilation, j // dilation
    if is_causal:
        leader = min(i // stride * stride + stride - 1, size - 1)
        return max(leader - window + 1, 0) <= j <= i
    if is_cut:
        return 0 <= j - (i // stride * stride + stride // 2 - window // 2) < window
    leader = min(i // stride * stride + stride // 2, size - 1)
    first = min(max(leader - window // 2, 0), size - window)
    return first <= j < first + window


def neighborhood_attention(a: dict[str, Any]) -> list[Array]:
    space = a["q"].shape[1:-2]
    rank, cells = len(space), list(np.ndindex(*space))

    def each(name: str, default: Any) -> Any:
        value = a.get(name, default)
        return value if isinstance(value, tuple) else (value,) * rank

    windows, dilations = each("window_size", None), each("dilation", 1)
    is_cut = (a.get("border") == "truncate",) * rank
    axes = list(zip(space, windows, dilations, each("stride", 1), each("is_causal", False), is_cut))
    visible = np.array([[all(_sees(i, j, *x) for i, j, x in zip(p, r, axes)) for r in cells] for p in cells])
    if a.get("cu_seqlens") is not None:
        sequence = _sequence_of(a, len(cells))
        visible &= sequence[:, None] == sequence
    add, extra = np.zeros((a["q"].shape[-2], len(cells), len(cells))), a.get("additional_keys")
    if a.get("relative_bias") is not None:
        for (n, p), (m, r) in itertools.product(enumerate(cells), enumerate(cells)):
            if visible[n, m]:
                entry = tuple((j - i) // d + w - 1 for i, j, d, w in zip(p, r, dilations, windows))
                add[:, n, m] = a["relative_bias"][(slice(None), *entry)]
    if extra is not None:
        visible = np.pad(visible, ((0, 0), (0, extra.shape[1])), constant_values=True)
        add = np.pad(add, ((0, 0), (0, 0), (0, extra.shape[1])))
    return _over_heads(a, lambda b: visible, lambda b, h: add[h], extra is not None)


def _features(name: str | None, x: Array) -> Array:
    if name is None:
        return x
    return {
        "elu+1": lambda: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))),
        "relu": lambda: np.maximum(x, 0),
        "silu": lambda: x / (1 + np.exp(-x)),
    }[name]()


def _decay(a: dict[str, Any], t: int, b: int, h: int, heads: int, width: int) -> Array:
    """exp of the log decay of a head at a token, for each key channel; `t` < 0 where there are no tokens."""
    g = a.get("log_decay")
    if g is None:
        return np.ones(width)
    b = 0 if len(g) == 1 else b
    lead = () if g.ndim == 1 else (b,) if t < 0 else (b, t)
    at = g[lead] if g.ndim > 1 else g
    return np.exp(np.broadcast_to(at[h // (heads // at.shape[0])], (width,)))


def _recurrence(a: dict[str, Any], q: Array, k: Array, v: Array, scale: float) -> tuple[Array, Array]:
    """Outputs and last states of S = diag(decay) S + k v^T, o = scale q S."""
    batch, tokens, heads, width = q.shape
    sequence = _sequence_of(a, tokens)
    bounds = a.get("cu_seqlens")
    rows = batch if bounds is None else len(bounds) - 1
    initial = a.get("initial_state")
    states = np.zeros((rows, heads, width, v.shape[-1])) if initial is None else initial.copy()
    out = np.zeros((batch, tokens, heads, v.shape[-1]))
    for b, t, h in itertools.product(range(batch), range(tokens), range(heads)):
        g, row = h // (heads // k.shape[2]), b if bounds is None else sequence[t] - 1
        decayed = _decay(a, t, b, h, heads, width)[:, None] * states[row, h]
        states[row, h] = decayed + np.outer(k[b, t, g], v[b, t, g])
        out[b, t, h] = scale * (q[b, t, h] @ states[row, h])
    if a.get("is_causal", True) is False:
        for b, t, h in itertools.product(range(batch), range(tokens), range(heads)):
            out[b, t, h] = scale * (q[b, t, h] @ states[b if bounds is None else sequence[t] - 1, h])
    return out, states


def linear_attention(a: dict[str, Any]) -> list[Array]:
    scale = a["q"].shape[-1] ** -0.5 if a.get("scale") is None else a["scale"]
    out, states = _recurrence(a, a["q"], a["k"], a["v"], scale)
    return [out, states] if a.get("output_final_state") else [out]


def gated_delta_rule(a: dict[str, Any]) -> list[Array]:
    q, k, v, beta = a["q"], a["k"], a["v"], a["beta"]
    scale = q.shape[-1] ** -0.5 if a.get("scale") is None else a["scale"]
    batch, tokens, heads, width = q.shape
    sequence, bounds, initial = _sequence_of(a, tokens), a.get("cu_seqlens"), a.get("initial_state")
    rows = batch if bounds is None else len(bounds) - 1
    states = np.zeros((rows, heads, width, v.shape[-1])) if initial is None else initial.copy()
    out = np.zeros((batch, tokens, heads, v.shape[-1]))
    for b, t, h in itertools.product(range(batch), range(tokens), range(heads)):
        g, row = h // (heads // k.shape[2]), b if bounds is None else sequence[t] - 1
        kept = _decay(a, t, b, h, heads, width)[:, None] * states[row, h]
        wrong = v[b, t, g] - k[b, t, g] @ kept
        states[row, h] = kept + beta[b, t, h // (heads // beta.shape[2])] * np.outer(k[b, t, g], wrong)
        out[b, t, h] = scale * (q[b, t, h] @ states[row, h])
    return [out, states] if a.get("output_final_state") else [out]


def kernel_attention(a: dict[str, Any]) -> list[Array]:
    q, k = (_features(a.get("feature_map"), a[name]) for name in ("q", "k"))
    v, divide = a["v"], a.get("denominator")
    turn = a.get("position_map") or (lambda x: x)
    if divide is None:
        out, states = _recurrence(a, turn(q), turn(k), v, 1.0)
        return [out, states] if a.get("output_final_state") else [out]
    initial = a.get("initial_state")
    above, below = dict(a), dict(a)
    if initial is not None:
        above["initial_state"], below["initial_state"] = initial[..., :-1], initial[..., -1:]
    numerators, states = _recurrence(above, turn(q), turn(k), v, 1.0)
    sums, weights = _recurrence(below, q, k, np.ones((*v.shape[:-1], 1)), 1.0)
    out = numerators / (np.maximum(sums, divide.minimum) + divide.eps)
    return [out, np.concatenate([states, weights], -1)] if a.get("output_final_state") else [out]


def linear_attention_step(a: dict[str, Any]) -> list[Array]:
    q, k, v, states, slots = a["q"], a["k"], a["v"], a["state"].copy(), a.get("state_slots")
    batch, heads, width = q.shape
    scale = width**-0.5 if a.get("scale") is None else a["scale"]
    out = np.zeros((batch, heads, v.shape[-1]))
    for b, h in itertools.product(range(batch), range(heads)):
        g, row = h // (heads // k.shape[1]), b if slots is None else slots[b]
        if row < 0:
            continue
        decayed = _decay(a, -1, b, h, heads, width)[:, None] * states[row, h]
        states[row, h] = decayed + np.outer(k[b, g], v[b, g])
        out[b, h] = scale * (q[b, h] @ states[row, h])
    return [out, states]


def kernel_attention_step(a: dict[str, Any]) -> list[Array]:
    q, k = (_features(a.get("feature_map"), a[name]) for name in ("q", "k"))
    divide, v = a.get("denominator"), a["v"]
    if divide is not None:
        v = np.concatenate([v, np.ones((*v.shape[:-1], 1))], -1)
    out, states = linear_attention_step({**a, "q": q, "k": k, "v": v, "scale": 1.0})
    if divide is not None:
        out = out[..., :-1] / (np.maximum(out[..., -1:], divide.minimum) + divide.eps)
    return [out, states]


def relative_kernel_attention(a: dict[str, Any]) -> list[Array]:
    q, k, v, bias = (a[name] for name in ("q", "k", "v", "relative_bias"))
    q, k = (_features(a.get("feature_map"), x) for x in (q, k))
    space = k.shape[1:-2]
    late = space[0] - q.shape[1]  # fewer queries are the last ones
    cells, queries = list(np.ndindex(*space)), list(np.ndindex(*q.shape[1:-2]))
    reach = [(n + 1) // 2 for n in bias.shape[1:]]
    q, k, v = (x.reshape(len(x), -1, *x.shape[-2:]) for x in (q, k, v))
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    sequence, mask = _sequence_of(a, len(cells)), a.get("key_mask")
    for n, cell in enumerate(queries):
        place = (cell[0] + late, *cell[1:])
        entries = [[min(max(x - y + p - 1, 0), 2 * p - 2) for x, y, p in zip(c, place, reach)] for c in cells]
        biases = bias[(slice(None), *np.array(entries).T)]  # [H, keys]
        seen = sequence == sequence[n + late]
        if a.get("is_causal"):
            seen &= np.arange(len(cells)) <= n + late
        for b, h in itertools.product(range(len(q)), range(q.shape[2])):
            g = h // (q.shape[2] // k.shape[2])
            row = biases[h][seen & (True if mask is None else mask[b].reshape(-1))]
            chosen = seen & (True if mask is None else mask[b].reshape(-1))
            top = row.max(initial=-math.inf)
            if top == -math.inf:
                continue
            weights = np.exp(row - top) * (k[b, chosen, g] @ q[b, n, h])
            if weights.sum() > 0:
                out[b, n, h] = weights @ v[b, chosen, g] / weights.sum()
    return [out.reshape(*a["q"].shape[:-1], -1)]


def merge_attention(a: dict[str, Any]) -> list[Array]:
    outs, lses = np.stack(a["outs"]), np.stack(a["lses"])
    top = lses.max(0)
    safe = np.where(np.isinf(top), 0.0, top)
    weights = np.exp(lses - safe)
    total = weights.sum(0)
    out = (weights[..., None] * outs).sum(0) / np.where(total > 0, total, 1.0)[..., None]
    return [out, np.where(total > 0, safe + np.log(np.where(total > 0, total, 1.0)), -math.inf)]


def toeplitz(a: dict[str, Any]) -> list[Array]:
    c, x, axes = a["coefficients"], a["x"], a.get("space_dims", 1)
    inside, numbers = c.shape[-axes:], x.shape[-axes:]
    outside = tuple(s - m + 1 for s, m in zip(inside, numbers))
    lead = np.broadcast_shapes(c.shape[:-axes], x.shape[:-axes])
    c, x = np.broadcast_to(c, (*lead, *inside)), np.broadcast_to(x, (*lead, *numbers))
    y = np.zeros((*lead, *outside))
    for i, j in itertools.product(np.ndindex(*outside), np.ndindex(*numbers)):
        if a.get("is_causal") and j[0] > i[0]:
            continue
        entry = tuple(m - n + size - 1 for n, m, size in zip(i, j, outside))
        y[(..., *i)] += c[(..., *entry)] * x[(..., *j)]
    return [y]


def rotary_embedding(a: dict[str, Any]) -> list[Array]:
    x, base = a["x"], a.get("base", 10_000.0)
    half = x.shape[-1] // 2
    positions = np.broadcast_to(a["positions"], x.shape[:2])
    angles = (positions[..., None] * base ** (-np.arange(half) / half))[:, :, None]
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return [np.concatenate([first * cos - second * sin, first * sin + second * cos], -1)]


DEFINITIONS: dict[str, Callable[[dict[str, Any]], list[Array]]] = {
    function.__name__: function
    for function in (
        *(softmax_attention, block_attention, neighborhood_attention, linear_attention, kernel_attention),
        *(linear_attention_step, kernel_attention_step, relative_kernel_attention, merge_attention, toeplitz),
        *(rotary_embedding, gated_delta_rule),
    )
}
