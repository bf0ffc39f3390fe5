"""What the docstrings of `attensor.ops` demand of arguments among each other, written from them and from no check.

A rule raises `Illegal`; a text that it returns says what the documentation leaves open.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.calls import need

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NOTHING = "no tokens, no rows or no channels"
Arguments = dict[str, Any]


def is_empty(*tensors: Tensor) -> str | None:
    """What has no numbers may give a right value or one clear error."""
    return NOTHING if any(not t.numel() for t in tensors) else None


def same_device(a: Arguments, like: Tensor, *names: str) -> None:
    for name in names:
        if isinstance(a.get(name), Tensor):
            need(a[name].device == like.device, f"{name}: on another device")


def shape(a: Arguments, name: str, *allowed: list[int]) -> None:
    if isinstance(a.get(name), Tensor):
        need(list(a[name].shape) in allowed, f"{name}: {list(a[name].shape)} is none of {allowed}")


def broadcasts(tensor: Tensor, to: list[int]) -> bool:
    sizes = list(tensor.shape)
    return len(sizes) <= len(to) and all(x in (1, y) for x, y in zip(reversed(sizes), reversed(to)))


def qkv(a: Arguments, *ranks: int, same_tokens: bool = True) -> None:
    """[B, *space, H, K], [B, *space, Hkv, K], [B, *space, Hkv, V]."""
    q, k, v = a["q"], a["k"], a["v"]
    for name, x in (("q", q), ("k", k), ("v", v)):
        need(x.ndim in ranks and x.ndim == q.ndim, f"{name}: rank {x.ndim}")
        need(x.dtype == q.dtype, f"{name}: another dtype")
    same_device(a, q, "k", "v")
    need(k.shape[:-1] == v.shape[:-1], "k and v disagree")
    need(q.shape[-1] == k.shape[-1], "q and k: head size")
    need(q.shape[0] == k.shape[0], "q and k: batch")
    need(k.shape[-2] > 0 and q.shape[-2] > 0 and q.shape[-2] % k.shape[-2] == 0, "heads")
    if same_tokens:
        need(q.shape[1:-2] == k.shape[1:-2], "q and k: tokens")


def cu_seqlens(a: Arguments, tokens: int, batch: int) -> int:
    """Sequences of a packing; `batch` if there is none."""
    bounds = a.get("cu_seqlens")
    if bounds is None:
        return batch
    need(batch == 1, "cu_seqlens: batch of more than one")
    need(bounds.ndim == 1 and bounds.numel() >= 1, "cu_seqlens: shape")
    same_device(a, a.get("q", bounds), "cu_seqlens")
    need(bounds.device.type != "meta", "cu_seqlens: meta")
    listed = bounds.tolist()
    need(listed[0] == 0 and listed[-1] == tokens and listed == sorted(listed), "cu_seqlens: bounds")
    return len(listed) - 1


def power_of_two(x: Any) -> bool:
    return x >= 1 and x & (x - 1) == 0


def linear(a: Arguments, key_width: int | None = None, value_width: int | None = None) -> str | None:
    """`linear_attention`; the widths are those of features and columns in `kernel_attention`."""
    qkv(a, 4)
    q, k, v = a["q"], a["k"], a["v"]
    batch, tokens, heads, width = q.shape
    width = width if key_width is None else key_width
    decays = (heads, k.shape[2])
    sizes = [s for h in decays for s in ([h], *([n, tokens, *e] for n in (1, batch) for e in ([h], [h, width])))]
    shape(a, "log_decay", *sizes)
    causal = a.get("is_causal", True)
    need(causal or a.get("log_decay") is None, "log_decay: not causal")
    rows = cu_seqlens(a, tokens, batch)
    shape(a, "initial_state", [rows, heads, width, v.shape[-1] if value_width is None else value_width])
    same_device(a, q, "log_decay", "initial_state")
    if a.get("chunk_size") is not None:
        need(power_of_two(a["chunk_size"]), "chunk_size: no power of two")
    need(a.get("backend") != "cpp" or (causal and q.device.type == "cpu"), "backend: cpp is causal, on a CPU")
    return is_empty(q, k, v) or ("backend: triton" if a.get("backend") == "triton" else None)


def features_of(a: Arguments, x: Tensor) -> int:
    """M of the feature map; what it returns must be [.., heads, M]."""
    mapped = a.get("feature_map")
    if mapped is None:
        return int(x.shape[-1])
    if isinstance(mapped, str):
        return int(x.shape[-1])
    try:
        out = mapped(torch.ones_like(x, dtype=torch.promote_types(x.dtype, torch.float32)))
    except Exception as error:
        need(False, f"feature_map: {error}")
    need(isinstance(out, Tensor) and out.shape[:-1] == x.shape[:-1] and out.ndim == x.ndim, "feature_map: its result")
    return int(out.shape[-1])


def kernel(a: Arguments) -> str | None:
    qkv(a, 4)
    width = features_of(a, a["q"])
    has_denominator, turned = a.get("denominator") is not None, a.get("position_map")
    if turned is not None:
        try:
            out = turned(torch.ones(*a["q"].shape[:-1], width))
        except Exception as error:
            need(False, f"position_map: {error}")
        need(isinstance(out, Tensor) and out.shape[:-1] == a["q"].shape[:-1], "position_map: its result")
        stateless = a.get("initial_state") is None and not a.get("output_final_state")
        need(not has_denominator or stateless, "position_map: a state with positions and a denominator")
        if out.shape[-1] != width:
            return "position_map: another width"
    unsaid = linear(a, width, a["v"].shape[-1] + has_denominator)
    return unsaid or ("feature_map: signed" if has_denominator and a.get("feature_map") in (None, "silu") else None)


def step(a: Arguments, key_width: int | None = None, value_width: int | None = None) -> str | None:
    qkv(a, 3, same_tokens=False)
    q, k, v = a["q"], a["k"], a["v"]
    batch, heads, width = q.shape
    width = width if key_width is None else key_width
    slots = a.get("state_slots")
    sizes = ([*rows, h, *more] for h in (heads, k.shape[1]) for rows in ([batch], [1]) for more in ([], [width]))
    shape(a, "log_decay", [heads], [k.shape[1]], *sizes)
    same_device(a, q, "log_decay", "state", "state_slots")
    need(a["state"].ndim == 4, "state: rank")
    rows = a["state"].shape[0] if slots is not None else batch
    shape(a, "state", [rows, heads, width, v.shape[-1] if value_width is None else value_width])
    if slots is not None:
        shape(a, "state_slots", [batch])
        taken = [n for n in slots.tolist() if n != -1]
        need(all(0 <= n < rows for n in taken) and len(set(taken)) == len(taken), "state_slots: out of range or twice")
        need(a.get("backend") != "cpp", "backend: cpp has no slots")
        need(0 not in a["state"].stride() and not a["state"].requires_grad, "state: no pool of its own")
        if slots.dtype not in (torch.int32, torch.int64):
            return "state_slots: small integers"
    return is_empty(q, k, v) or ("backend: triton" if a.get("backend") == "triton" else None)


def kernel_step(a: Arguments) -> str | None:
    qkv(a, 3, same_tokens=False)
    has_denominator = a.get("denominator") is not None
    # a feature map takes [B, T, heads, K]
    width = features_of(a, a["q"][:, None])
    return step(a, width, a["v"].shape[-1] + has_denominator)


def softmax(a: Arguments) -> str | None:
    qkv(a, 4, same_tokens=False)
    q, k = a["q"], a["k"]
    bounds = a.get("cu_seqlens")
    if isinstance(bounds, (tuple, list)):
        sequences = [cu_seqlens({"q": x, "cu_seqlens": n}, x.shape[1], x.shape[0]) for x, n in zip((q, k), bounds)]
        need(sequences[0] == sequences[1], "cu_seqlens: other numbers of sequences")
    else:
        need(bounds is None or q.shape[1] == k.shape[1], "cu_seqlens: Tq is not Tk")
        cu_seqlens(a, q.shape[1], q.shape[0])
    mask = a.get("attn_mask")
    same_device(a, q, "attn_mask")
    need(mask is None or broadcasts(mask, [q.shape[0], q.shape[2], q.shape[1], k.shape[1]]), "attn_mask: shape")
    need(0 <= a.get("dropout_p", 0.0) < 1, "dropout_p: range")
    if mask is not None and a.get("cu_seqlens") is not None:
        return "attn_mask with cu_seqlens"
    if a.get("generator") is not None:
        need(a["generator"].device.type == q.device.type, "generator: device")
    return is_empty(q, k, a["v"])


def block(a: Arguments) -> str | None:
    qkv(a, 4, 5, 6)
    q, pattern, size, axis = a["q"], a["pattern"], a.get("block_size"), a.get("axis")
    space = list(q.shape[1:-2])
    if pattern == "axial":
        need(size is None, "block_size: axial has none")
        need(axis is not None and -len(space) <= axis < len(space), "axis: none of the axes")
        tokens = space[axis]
    else:
        need(axis is None, "axis: axial only")
        need(size is not None, "block_size: missing")
        need(not a.get("is_causal", False), "is_causal: axial only")
        sizes = list(size) if isinstance(size, (tuple, list)) else [size] * len(space)
        need(len(sizes) == len(space) and all(n >= 1 for n in sizes), "block_size: sizes")
        tokens = prod(sizes)
    mask = a.get("attn_mask")
    same_device(a, q, "attn_mask")
    need(mask is None or broadcasts(mask, [q.shape[-2], tokens, tokens]), "attn_mask: shape")
    return "block_size: far beyond the space" if tokens > 10**4 else is_empty(q, a["v"])


def routed(a: Arguments) -> str | None:
    qkv(a, 4, same_tokens=False)
    q, k, v, gates = a["q"], a["k"], a["v"], a["gates"]
    need(list(gates.shape) == list(q.shape[:3]), "gates: shape")
    same_device(a, q, "gates", "attn_mask")
    if a.get("cu_seqlens") is not None:
        need(q.shape[1] == k.shape[1], "cu_seqlens: Tq is not Tk")
        cu_seqlens(a, q.shape[1], q.shape[0])
    mask = a.get("attn_mask")
    need(mask is None or broadcasts(mask, [*q.shape[:1], q.shape[2], q.shape[1], k.shape[1]]), "attn_mask: shape")
    if mask is not None and a.get("cu_seqlens") is not None:
        return "attn_mask with cu_seqlens"
    return is_empty(q, k, v)


def channel(a: Arguments) -> str | None:
    qkv(a, 4, 5, 6)
    need(a["q"].shape == a["k"].shape == a["v"].shape, "q, k and v: other sizes")
    return is_empty(a["q"])


def halo(a: Arguments) -> str | None:
    qkv(a, 5, same_tokens=False)
    q, k, block, width, stride = a["q"], a["k"], a["block_size"], a["halo_size"], a.get("query_stride", 1)
    need(block % stride == 0, "block_size: no multiple of query_stride")
    need(list(q.shape[1:3]) == [-(-n // stride) for n in k.shape[1:3]], "q: places of the queries")
    same_device(a, q, "relative_embedding")
    shape(a, "relative_embedding", [2, 2 * (block + 2 * width) - 1, q.shape[-1]])
    return "block_size, halo_size: very many cells" if block + 2 * width > 100 else is_empty(q, k, a["v"])


def delta(a: Arguments) -> str | None:
    qkv(a, 4)
    q, k, v = a["q"], a["k"], a["v"]
    sizes = [[*q.shape[:2], heads] for heads in (q.shape[2], k.shape[2])]
    shape(a, "beta", *sizes)
    shape(a, "log_decay", *sizes)
    rows = cu_seqlens(a, q.shape[1], q.shape[0])
    shape(a, "initial_state", [rows, *q.shape[2:], v.shape[-1]])
    same_device(a, q, "beta", "log_decay", "initial_state")
    most = max(float(x.detach().abs().amax()) if x.numel() else 0.0 for x in (k, a["beta"]))
    return is_empty(q, k, v) or ("k, beta: the recurrence grows" if not most <= 2 else None)


def power_law(a: Arguments) -> str | None:
    x = a["a"]
    need(x.ndim > 2 and x.shape[-1] == x.shape[-2], "a: no squares for heads")
    names = ("weight", "bias", "exponent", "mix", "mix_bias")
    same_device(a, x, *names)
    for name in names:
        shape(a, name, list(x.shape[-3:]))
        need(a[name].dtype == x.dtype, f"{name}: another dtype")
    return is_empty(x)


def pointer(a: Arguments) -> str | None:
    queries, keys, weight, kind = a["queries"], a["keys"], a.get("weight"), a.get("kind", "additive")
    need(queries.ndim == keys.ndim == 3, "queries, keys: rank")
    need(queries.shape[0] == keys.shape[0], "queries, keys: batch")
    widths = [queries.shape[-1], keys.shape[-1]]
    same_device(a, queries, "keys", "weight")
    for name in ("keys", "weight"):
        need(a.get(name) is None or a[name].dtype == queries.dtype, f"{name}: another dtype")
    if kind == "additive" or weight is None:
        need(widths[0] == widths[1], "queries, keys: channels")
    shape(a, "weight", widths if kind == "bilinear" else widths[:1])
    need(a.get("chunk_size") is None or kind == "additive", "chunk_size: for bilinear")
    return is_empty(queries, keys)


def latent(a: Arguments) -> str | None:
    q, kept, turned, keys = a["q"], a["latent"], a.get("q_rotary"), a.get("k_rotary")
    need((turned is None) == (keys is None), "q_rotary, k_rotary: one without the other")
    need(q.ndim == kept.ndim == 4, "q, latent: rank")
    need(a["value_weight"].ndim == 3, "value_weight: rank")
    batch, queries, heads, width = q.shape
    tokens, groups, rank = kept.shape[1:]
    need(heads > 0 and groups > 0 and heads % groups == 0, "q, latent: heads")
    need(kept.shape[0] == batch, "latent: batch")
    shape(a, "key_weight", [heads, width, rank])
    shape(a, "value_weight", [heads, a["value_weight"].shape[1], rank])
    if turned is not None:
        need(turned.ndim == 4, "q_rotary: rank")
        shape(a, "q_rotary", [batch, queries, heads, turned.shape[-1]])
        shape(a, "k_rotary", [batch, tokens, 1, turned.shape[-1]])
    named = ("latent", "key_weight", "value_weight", "q_rotary", "k_rotary")
    for name in named:
        need(a.get(name) is None or a[name].dtype == q.dtype, f"{name}: another dtype")
    same_device(a, q, *named, "attn_mask")
    if a.get("cu_seqlens") is not None:
        need(queries == tokens, "cu_seqlens: Tq is not Tk")
        cu_seqlens(a, queries, batch)
    mask = a.get("attn_mask")
    need(mask is None or broadcasts(mask, [batch, heads, queries, tokens]), "attn_mask: shape")
    if mask is not None and a.get("cu_seqlens") is not None:
        return "attn_mask with cu_seqlens"
    return is_empty(q, kept, a["value_weight"])


def per_axis(value: Any, rank: int, name: str) -> list[Any]:
    several = list(value) if isinstance(value, (tuple, list)) else [value] * rank
    need(len(several) == rank, f"{name}: one for each axis")
    return several


def neighborhood(a: Arguments) -> str | None:
    qkv(a, 4, 5, 6)
    q, k, v = a["q"], a["k"], a["v"]
    space = list(q.shape[1:-2])
    windows = per_axis(a["window_size"], len(space), "window_size")
    dilations, strides = (per_axis(a.get(name, 1), len(space), name) for name in ("dilation", "stride"))
    causal = per_axis(a.get("is_causal", False), len(space), "is_causal")
    for n, w, d, s, late in zip(space, windows, dilations, strides, causal):
        need(w >= 1 and d >= 1 and s >= 1, "window_size, dilation or stride below 1")
        need(late or a.get("border") == "truncate" or w * d <= n, "window_size: larger than the axis")
        need(s <= w, "stride: larger than the window")
    shape(a, "relative_bias", [q.shape[-2], *(2 * w - 1 for w in windows)])
    same_device(a, q, "relative_bias", "additional_keys", "additional_values")
    more, of = a.get("additional_keys"), a.get("additional_values")
    need((more is None) == (of is None), "additional_keys: without values")
    if more is not None and of is not None:
        need(more.ndim == 4 and of.ndim == 4 and more.shape[1] == of.shape[1], "additional_keys: rank or number")
        for extra, like in ((more, k), (of, v)):
            need(extra.dtype == q.dtype, "additional_keys: dtype")
            need([extra.shape[0], *extra.shape[2:]] == [like.shape[0], *like.shape[-2:]], "additional_keys: sizes")
    if a.get("cu_seqlens") is not None:
        need(len(space) == 1 and causal[0] and dilations == strides == [1], "cu_seqlens: not one plain causal axis")
        cu_seqlens(a, space[0], q.shape[0])
        if more is not None or a.get("relative_bias") is not None:
            return "cu_seqlens with other options"
    return is_empty(q, v) or (is_empty(more) if more is not None else None)


def relative(a: Arguments) -> str | None:
    qkv(a, 4, 5, same_tokens=False)
    q, k, v, bias = a["q"], a["k"], a["v"], a["relative_bias"]
    space, is_grid = list(q.shape[1:-2]), q.ndim == 5
    need(space == list(k.shape[1:-2]) or (not is_grid and space[0] < k.shape[1]), "q and k: tokens")
    need(bias.ndim == 1 + len(space) and bias.shape[0] == q.shape[-2], "relative_bias: shape")
    need(all(n % 2 == 1 for n in bias.shape[1:]), "relative_bias: even")
    need(not (is_grid and a.get("is_causal", False)), "is_causal: grid")
    bounds, most = a.get("cu_seqlens"), a.get("max_seqlen")
    is_transform = str(a.get("algorithm")).startswith("fft")
    need(bounds is None or most is not None or not is_transform, "max_seqlen: transforms of a packing need it")
    features_of(a, q)
    same_device(a, q, "relative_bias", "key_mask")
    shape(a, "key_mask", [k.shape[0], *k.shape[1:-2]])
    if bounds is not None:
        need(not is_grid and space == list(k.shape[1:-2]) and a.get("key_mask") is None, "cu_seqlens: does not go")
        cu_seqlens(a, space[0], q.shape[0])
        if most is not None:
            need(most >= max((y - x for x, y in zip(bounds.tolist(), bounds.tolist()[1:])), default=0), "max_seqlen")
    need(a.get("backend") != "cpp" or a.get("algorithm") in (None, "tiles"), "backend: cpp is tiles")
    need(a.get("backend") != "cpp" or bounds is None or most is not None, "backend: cpp needs max_seqlen")
    if bounds is None and most is not None:
        return "max_seqlen without packing"
    finite = all(bool(x.isfinite().all()) for x in (k, v, bias))
    if is_transform and not finite:
        return "algorithm: transforms mix all numbers"
    if a.get("feature_map") is None:
        return is_empty(q, k, v) or ("features below 0" if bool((q < 0).any() or (k < 0).any()) else None)
    if a["feature_map"] not in ("elu+1", "relu"):
        return "features that may be negative"
    return is_empty(q, k, v) or ("backend: cpp by name" if a.get("backend") == "cpp" else None)


def merge(a: Arguments) -> str | None:
    outs, lses = a["outs"], a["lses"]
    need(len(outs) and len(outs) == len(lses), "outs: number of parts")
    for out, lse in zip(outs, lses):
        need(out.ndim >= 3 and out.shape == outs[0].shape and lse.shape == out.shape[:-1], "outs: sizes")
        need(out.dtype == outs[0].dtype and lse.dtype == lses[0].dtype, "outs: dtypes")
        need(out.device == lse.device == outs[0].device, "outs: devices")
    if any(bool((lse == torch.inf).any()) for lse in lses if lse.device.type != "meta"):
        return "lses: infinite"
    return "outs: no space axis" if outs[0].ndim < 4 else is_empty(*outs)


def toeplitz(a: Arguments) -> str | None:
    c, x, axes = a["coefficients"], a["x"], a.get("space_dims", 1)
    need(axes in (1, 2), "space_dims")
    need(not a.get("is_causal", False) or axes == 1, "is_causal: two axes")
    need(c.ndim >= axes and x.ndim >= axes, "coefficients: too few dimensions")
    need(all(n >= m for n, m in zip(c.shape[-axes:], x.shape[-axes:])), "coefficients: fewer than m")
    same_device(a, x, "coefficients")
    lead = c.shape[: c.ndim - axes], x.shape[: x.ndim - axes]
    need(all(s == t or 1 in (s, t) for s, t in zip(reversed(lead[0]), reversed(lead[1]))), "coefficients: broadcast")
    precision = a.get("fft_dtype")
    need(precision in (None, torch.float32, torch.float64), "fft_dtype: below float32")
    if precision is not None and torch.promote_types(precision, x.dtype) != precision:
        return "fft_dtype: below the input's"
    if (
        x.device.type != "meta"
        and a.get("backend") != "reference"
        and not bool(c.isfinite().all() and x.isfinite().all())
    ):
        return "x: transforms mix all numbers"
    return is_empty(c, x) or ("coefficients: another dtype" if c.dtype != x.dtype else None)
