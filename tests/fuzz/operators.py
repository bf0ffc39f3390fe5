"""Legal calls of the public operators and of their references, drawn at random from a table."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.fuzz import operator_rules as rules
from tests.fuzz.calls import Call, Rules, optional, packing, pick, randn, size, some_dtype

__all__ = ["OPERATORS", "draw_operator"]

Draw = Callable[[random.Random, str], dict[str, str]]
FLOATS = {"q": "*tensor:float", "k": "*tensor:float", "v": "*tensor:float"}
SHARED = {"scale": "float?", "backend": "choice?:reference|torch"}
FEATURES = "feature_map?:elu+1|relu|silu"


def _qkv(
    rng: random.Random, dtype: str, space: list[int], batch: int, positive: bool = False
) -> tuple[list[int], dict]:
    """B, H, Hkv, K, V and the three tensors."""
    kv_heads, width, values = rng.choice([1, 2]), rng.choice([2, 3, 4]), rng.choice([3, 5])
    heads = kv_heads * rng.choice([1, 2, 3])
    q, k, v = (randn(dtype, batch, *space, *ends) for ends in ((heads, width), (kv_heads, width), (kv_heads, values)))
    if positive:
        q, k = f"{q}.abs()", f"{k}.abs()"
    return [batch, heads, kv_heads, width, values], {"q": q, "k": k, "v": v}


def _packed(rng: random.Random, tokens: int, share: float = 0.3) -> tuple[int, int, dict[str, str]]:
    """Rows, sequences, and the packing if there is one."""
    if rng.random() > share:
        batch = size(rng, [1, 2, 3])
        return batch, batch, {}
    bounds = packing(rng, tokens)
    return 1, len(bounds) - 1, {"cu_seqlens": f"torch.tensor({bounds})"}


def _decay(rng: random.Random, dtype: str, sizes: list[int], lead: list[int]) -> str:
    _, heads, kv_heads, width, _ = sizes
    h = rng.choice([heads, kv_heads])
    return f"-{randn(dtype, *rng.choice([[h], [*lead, h], [*lead, h, width]]))}.abs()"


def _linear(rng: random.Random, dtype: str) -> dict[str, str]:
    tokens = size(rng, [1, 2, 7, 11, 35])
    batch, rows, given = _packed(rng, tokens)
    sizes, tensors = _qkv(rng, dtype, [tokens], batch)
    state = "float64" if dtype == "float64" else "float32"
    if rng.random() < 0.25:
        given["is_causal"] = "False"
    elif rng.random() < 0.6:
        given["log_decay"] = _decay(rng, dtype, sizes, [batch, tokens])
    return {
        **tensors,
        **given,
        **optional(rng, 0.4, initial_state=randn(state, rows, sizes[1], sizes[3], sizes[4])),
        **optional(rng, 0.3, scale=pick(rng, [0.7, 1.0, 2])),
        **optional(rng, 0.5, output_final_state=pick(rng, [True, False])),
        **optional(rng, 0.4, chunk_size=pick(rng, [None, 1, 4, 16, 64])),
        **optional(rng, 0.4, backend=pick(rng, [None, "torch", "reference"])),
    }


def _kernel(rng: random.Random, dtype: str) -> dict[str, str]:
    given = _linear(rng, dtype)
    for absent in ("chunk_size", "backend", "scale"):
        given.pop(absent, None)
    given["feature_map"] = pick(rng, ["elu+1", "relu", "silu"])
    if rng.random() < 0.4:
        given |= {"feature_map": "'elu+1'", "denominator": "ops.Denominator()"}
        given.pop("initial_state", None)
        if rng.random() < 0.4:
            given |= {"position_map": "lambda x: x * 2.0", "output_final_state": "False"}
    return given


def _step(rng: random.Random, dtype: str) -> dict[str, str]:
    batch = size(rng, [1, 2, 3])
    sizes, tensors = _qkv(rng, dtype, [], batch)
    state, rows = "float64" if dtype == "float64" else "float32", batch
    given = optional(rng, 0.5, log_decay=_decay(rng, dtype, sizes, [batch]))
    if rng.random() < 0.4:
        rows = max(batch, 1) + rng.randint(0, 2)
        slots = rng.sample(range(rows), batch)
        taken = [-1 if rng.random() < 0.2 else n for n in slots]
        given["state_slots"] = f"torch.tensor({taken}, dtype=torch.int64)"
    return {
        **tensors,
        "state": randn(state, rows, sizes[1], sizes[3], sizes[4]),
        **given,
        **optional(rng, 0.3, scale=pick(rng, [0.7, 1.0, 2])),
        **optional(rng, 0.4, backend=pick(rng, [None, "torch", "reference"])),
    }


def _kernel_step(rng: random.Random, dtype: str) -> dict[str, str]:
    given = _step(rng, dtype)
    for absent in ("backend", "scale"):
        given.pop(absent, None)
    if "state_slots" in given:
        return _kernel_step(rng, dtype)
    return {**given, "feature_map": pick(rng, ["elu+1", "relu", "silu"])}


def packed(rng: random.Random, bounds: str, keys: int | None) -> dict[str, str]:
    """A packing of queries, and one of as many sequences of keys where their number is given."""
    if keys is None:
        return {"cu_seqlens": bounds}
    cuts = sorted(rng.randint(0, keys) for _ in range(bounds.count(",") - bounds.count("dtype") - 1))
    return {"cu_seqlens": f"({bounds}, torch.tensor({[0, *cuts, keys]}))"}


def _softmax(rng: random.Random, dtype: str) -> dict[str, str]:
    queries = size(rng, [1, 3, 7, 11])
    batch, _, given = _packed(rng, queries)
    keys = queries if given and rng.random() < 0.6 else queries + rng.choice([0, 0, 1, 4])
    if given:
        given = packed(rng, given["cu_seqlens"], keys if keys != queries else None)
    [_, heads, *_], tensors = _qkv(rng, dtype, [queries], batch)
    for name in ("k", "v"):
        tensors[name] = tensors[name].replace(f"({batch}, {queries},", f"({batch}, {keys},")
    if not given and rng.random() < 0.4:
        shape = rng.choice([[queries, keys], [batch, 1, queries, keys], [heads, queries, keys], [1, keys]])
        given["attn_mask"] = randn(dtype, *shape) + rng.choice(["", " > 0.0"])
    return {
        **tensors,
        **given,
        **optional(rng, 0.4, is_causal=pick(rng, [True, False])),
        **optional(rng, 0.3, scale=pick(rng, [0.7, 1.0, 2])),
        **optional(rng, 0.3, return_lse=pick(rng, [True, False])),
        **optional(rng, 0.2, dropout_p=pick(rng, [0.0, 0.5]), generator="torch.Generator()"),
        **optional(rng, 0.4, backend=pick(rng, [None, "torch", "reference"])),
    }


def _space(rng: random.Random) -> list[int]:
    return [size(rng, [4, 5, 6, 7]) for _ in range(rng.choice([1, 2, 2, 3]))]


def _block(rng: random.Random, dtype: str) -> dict[str, str]:
    space = _space(rng)
    [_, heads, *_], tensors = _qkv(rng, dtype, space, size(rng, [1, 2]))
    pattern = rng.choice(["window", "grid", "axial"])
    if pattern == "axial":
        axis = rng.randrange(-len(space), len(space))
        given, tokens = {"axis": repr(axis), **optional(rng, 0.4, is_causal="True")}, space[axis]
    else:
        side = rng.choice([2, 3])
        given, tokens = {"block_size": repr(side)}, side ** len(space)
        if rng.random() < 0.5:
            given["block_size"] = repr((side,) * len(space))
    return {
        **tensors,
        "pattern": repr(pattern),
        **given,
        **optional(rng, 0.3, attn_mask=randn(dtype, heads, tokens, tokens) + rng.choice(["", " > 0.0"])),
        **optional(rng, 0.3, scale=pick(rng, [0.7, 1.0, 2])),
        **optional(rng, 0.4, backend=pick(rng, [None, "torch", "reference"])),
    }


def _channel(rng: random.Random, dtype: str) -> dict[str, str]:
    sizes = [size(rng, [1, 2]), *_space(rng), rng.choice([1, 2, 3]), rng.choice([2, 3])]
    return {
        **{name: randn(dtype, *sizes) for name in "qkv"},
        **optional(rng, 0.4, scale=pick(rng, [0.7, 1.0, 2])),
        **optional(rng, 0.4, backend=pick(rng, [None, "torch", "reference"])),
    }


def _latent(rng: random.Random, dtype: str) -> dict[str, str]:
    tokens, groups, width = size(rng, [1, 4, 7]), rng.choice([1, 2]), rng.choice([2, 3])
    batch, _, given = _packed(rng, tokens, 0.2)
    queries = tokens if given or rng.random() < 0.6 else 1
    heads, rank, rotary = groups * rng.choice([1, 2]), rng.choice([4, 5]), rng.choice([0, 2])
    turned = {
        "q_rotary": randn(dtype, batch, queries, heads, rotary),
        "k_rotary": randn(dtype, batch, tokens, 1, rotary),
    }
    return {
        "q": randn(dtype, batch, queries, heads, width),
        "latent": randn(dtype, batch, tokens, groups, rank),
        "key_weight": randn(dtype, heads, width, rank),
        "value_weight": randn(dtype, heads, rng.choice([2, 3]), rank),
        **(turned if rotary else {}),
        **given,
        **optional(rng, 0.3, scale=pick(rng, [0.7, 1.0, 2])),
        **optional(rng, 0.5, is_causal=pick(rng, [True, False])),
        **optional(rng, 0.0 if given else 0.3, attn_mask=f"torch.rand({batch}, 1, 1, {tokens}) > 0.2"),
        **optional(rng, 0.5, form=pick(rng, [None, "naive", "absorbed"])),
    }


def _delta(rng: random.Random, dtype: str) -> dict[str, str]:
    tokens = size(rng, [1, 2, 7, 11, 35])
    batch, rows, given = _packed(rng, tokens)
    [_, heads, kv_heads, width, values], tensors = _qkv(rng, dtype, [tokens], batch)
    own, state = rng.choice([heads, kv_heads]), "float64" if dtype == "float64" else "float32"
    return {
        **tensors,
        "k": f"torch.nn.functional.normalize({tensors['k']}, dim=-1)",
        "beta": f"{randn(dtype, batch, tokens, own)}.sigmoid()",
        **given,
        **optional(rng, 0.5, log_decay=f"-{randn(dtype, batch, tokens, own)}.abs()"),
        **optional(rng, 0.4, initial_state=randn(state, rows, heads, width, values)),
        **optional(rng, 0.3, scale=pick(rng, [0.7, 1.0, 2])),
        **optional(rng, 0.5, output_final_state=pick(rng, [True, False])),
        **optional(rng, 0.4, chunk_size=pick(rng, [None, 1, 5, 64])),
        **optional(rng, 0.4, backend=pick(rng, [None, "torch", "reference"])),
    }


def _power_law(rng: random.Random, dtype: str) -> dict[str, str]:
    """Entries of W A + b are away from zero, where a power magnifies the last digit of any form."""
    leading = rng.choice([[], [1], [2], [2, 3], [0]])
    square = [rng.choice([1, 3]), *[size(rng, [2, 4])] * 2]
    return {
        "a": randn(dtype, *leading, *square),
        "weight": f"{randn(dtype, *square)} / 16",
        "bias": f"{randn(dtype, *square)}.abs() + 2",
        "exponent": f"{randn(dtype, *square)} / 4",
        "mix": randn(dtype, *square),
        "mix_bias": randn(dtype, *square),
        **optional(rng, 0.4, backend=pick(rng, [None, "torch", "reference"])),
    }


def _pointer(rng: random.Random, dtype: str) -> dict[str, str]:
    batch, queries, keys = rng.choice([1, 2]), rng.choice([1, 3, 7]), rng.choice([1, 4, 11])
    kind, width = rng.choice(["additive", "bilinear"]), rng.choice([2, 3])
    more, given = width, {}
    if kind == "bilinear" and rng.random() < 0.6:
        more = rng.choice([2, 5])
        given["weight"] = randn(dtype, width, more)
    elif kind == "additive":
        given = optional(rng, 0.7, weight=randn(dtype, width), chunk_size=pick(rng, [None, 1, 2, 64]))
    return {
        "queries": randn(dtype, batch, queries, width),
        "keys": randn(dtype, batch, keys, more),
        "kind": repr(kind),
        **given,
        **optional(rng, 0.4, backend=pick(rng, [None, "torch", "reference"])),
    }


def _routed(rng: random.Random, dtype: str) -> dict[str, str]:
    queries = size(rng, [1, 3, 7, 11])
    batch, _, given = _packed(rng, queries)
    keys = queries if given else queries + rng.choice([0, 0, 1, 4])
    [_, heads, *_], tensors = _qkv(rng, dtype, [queries], batch)
    for name in ("k", "v"):
        tensors[name] = tensors[name].replace(f"({batch}, {queries},", f"({batch}, {keys},")
    if not given and rng.random() < 0.4:
        tensors["attn_mask"] = randn(dtype, *rng.choice([[queries, keys], [batch, 1, queries, keys], [1, keys]]))
    asked = randn(dtype, batch, queries, heads)
    return {
        **tensors,
        **given,
        "gates": rng.choice([asked, f"{asked}.relu()", f"{asked} > 0.0"]),
        **optional(rng, 0.4, is_causal=pick(rng, [True, False])),
        **optional(rng, 0.3, scale=pick(rng, [0.7, 1.0, 2])),
        **optional(rng, 0.5, form=pick(rng, [None, "gathered", "dense"])),
        **optional(rng, 0.4, backend=pick(rng, [None, "torch", "reference"])),
    }


def _halo(rng: random.Random, dtype: str) -> dict[str, str]:
    space, block, stride, halo = [size(rng, [4, 5, 6, 7]) for _ in range(2)], 4, rng.choice([1, 2]), rng.choice([0, 1])
    batch = size(rng, [1, 2])
    [*_, width, _], tensors = _qkv(rng, dtype, space, batch)
    return {
        **tensors,
        "q": f"{tensors['q']}[:, ::{stride}, ::{stride}]",
        "block_size": repr(block),
        "halo_size": repr(halo),
        "query_stride": repr(stride),
        **optional(rng, 0.6, relative_embedding=randn(dtype, 2, 2 * (block + 2 * halo) - 1, width)),
        **optional(rng, 0.3, legacy_offsets=pick(rng, [True, False])),
        **optional(rng, 0.4, border=pick(rng, ["mask", "zero"])),
        **optional(rng, 0.3, scale=pick(rng, [0.7, 1.0, 2])),
        **optional(rng, 0.4, backend=pick(rng, [None, "torch", "reference"])),
    }


def _neighborhood(rng: random.Random, dtype: str) -> dict[str, str]:
    space = _space(rng)
    batch, packed = size(rng, [1, 2]), {}
    if len(space) == 1 and rng.random() < 0.4:
        batch, packed = 1, {"cu_seqlens": f"torch.tensor({packing(rng, space[0])})", "is_causal": "True"}
    [_, heads, kv_heads, width, values], tensors = _qkv(rng, dtype, space, batch)
    window = rng.choice([2, 3])
    given = {"window_size": pick(rng, [window, (window,) * len(space)]), **packed}
    if not packed:
        extra = rng.choice([1, 3])
        given |= {
            **optional(rng, 0.4, is_causal=pick(rng, [True, False, (True,) * len(space)])),
            **optional(rng, 0.3, dilation="1" if min(space) < 2 * window else "2"),
            **optional(rng, 0.3, stride="2"),
            **optional(rng, 0.3, relative_bias=randn(dtype, heads, *(2 * window - 1,) * len(space))),
            **optional(
                rng,
                0.3,
                additional_keys=randn(dtype, batch, extra, kv_heads, width),
                additional_values=randn(dtype, batch, extra, kv_heads, values),
            ),
        }
    return {
        **tensors,
        **given,
        **optional(rng, 0.3, scale=pick(rng, [0.7, 1.0, 2])),
        **optional(rng, 0.3, return_lse=pick(rng, [True, False])),
        **optional(rng, 0.4, backend=pick(rng, [None, "torch", "reference"])),
    }


def _relative(rng: random.Random, dtype: str) -> dict[str, str]:
    space = [size(rng, [5, 7, 11]) for _ in range(rng.choice([1, 1, 2]))]
    batch, _, given = _packed(rng, space[0], 0.3 if len(space) == 1 else 0.0)
    has_map = rng.random() < 0.7
    [_, heads, *_], tensors = _qkv(rng, dtype, space, batch, positive=not has_map)
    reach = rng.choice([2, 4, 12])
    if given:
        given |= optional(rng, 0.5, max_seqlen=repr(space[0]))
    else:
        given |= optional(rng, 0.3, key_mask=f"torch.rand({', '.join(map(str, [batch, *space]))}) > 0.3")
    transforms = "cu_seqlens" not in given or "max_seqlen" in given
    return {
        **tensors,
        "relative_bias": randn(dtype, heads, *[2 * reach - 1] * len(space)),
        **given,
        **({"feature_map": "'elu+1'"} if has_map else {}),
        **optional(rng, 0.4 if len(space) == 1 else 0.0, is_causal=pick(rng, [True, False])),
        # transforms of packed sequences need to know the longest
        **optional(rng, 0.5, algorithm=pick(rng, [None, "tiles", *(["fft", "fft-float64"] if transforms else [])])),
        **optional(rng, 0.4, backend=pick(rng, [None, "torch", "reference"])),
    }


def _merge(rng: random.Random, dtype: str) -> dict[str, str]:
    shape = [size(rng, [1, 2]), *_space(rng), rng.choice([1, 3]), rng.choice([2, 5])]
    parts, of = rng.choice([1, 2, 3]), "float64" if dtype == "float64" else "float32"
    return {
        "outs": f"[{', '.join([randn(dtype, *shape)] * parts)}]",
        "lses": f"[{', '.join([randn(of, *shape[:-1])] * parts)}]",
    }


def _toeplitz(rng: random.Random, dtype: str) -> dict[str, str]:
    axes = rng.choice([1, 2])
    numbers = [size(rng, [1, 4, 7]) for _ in range(axes)]
    offsets = [n + rng.choice([0, 2, 6]) for n in numbers]
    lead = rng.choice([[], [2], [3, 1]])
    return {
        "coefficients": randn(dtype, *rng.choice([lead, [], [1]]), *offsets),
        "x": randn(dtype, *lead, *numbers),
        "space_dims": repr(axes),
        **optional(rng, 0.3 if axes == 1 else 0.0, is_causal=pick(rng, [True, False])),
        **optional(rng, 0.3, fft_dtype=rng.choice(["None", "torch.float64"])),
        **optional(rng, 0.4, backend=pick(rng, [None, "torch", "reference"])),
    }


_PACKING = {"cu_seqlens": "tensor?:integers"}
_STATEFUL = {"log_decay": "tensor?:float", "is_causal": "bool", "initial_state": "tensor?:float"}
_LINEAR = {**FLOATS, **_STATEFUL, "output_final_state": "bool", **_PACKING}
_FORMS = {"backend": "choice?:reference|torch|cpp|triton"}
_BOTH = {"return_lse": "bool", "scale": "float?", "backend": "choice?:reference|torch"}
_MAPS = {"feature_map": FEATURES, "denominator": "instance?:Denominator"}
OPERATORS: dict[str, tuple[dict[str, str], Draw, Rules]] = {
    "linear_attention": ({**_LINEAR, "scale": "float?", "chunk_size": "int?", **_FORMS}, _linear, rules.linear),
    "kernel_attention": ({**_LINEAR, **_MAPS, "position_map": "function?"}, _kernel, rules.kernel),
    "linear_attention_step": (
        {**FLOATS, "state": "*tensor:float", "log_decay": "tensor?:float", "state_slots": "tensor?:whole"}
        | {"scale": "float?", **_FORMS},
        _step,
        rules.step,
    ),
    "kernel_attention_step": (
        {**FLOATS, "state": "*tensor:float", "log_decay": "tensor?:float", **_MAPS},
        _kernel_step,
        rules.kernel_step,
    ),
    "softmax_attention": (
        {
            **FLOATS,
            **_BOTH,
            "cu_seqlens": "packing?",
            "is_causal": "bool",
            "attn_mask": "tensor?:mask",
            "dropout_p": "float",
        }
        | {"generator": "instance?:Generator"},
        _softmax,
        rules.softmax,
    ),
    "block_attention": (
        {**FLOATS, **SHARED, "pattern": "*choice:window|grid|axial", "block_size": "per_axis?", "axis": "int?"}
        | {"is_causal": "bool", "attn_mask": "tensor?:mask"},
        _block,
        rules.block,
    ),
    "channel_attention": ({**FLOATS, **SHARED}, _channel, rules.channel),
    "gated_delta_rule": (
        {**FLOATS, **SHARED, "beta": "*tensor:float", "log_decay": "tensor?:float", "initial_state": "tensor?:float"}
        | {"output_final_state": "bool", **_PACKING, "chunk_size": "int?:1"},
        _delta,
        rules.delta,
    ),
    "halo_attention": (
        {**FLOATS, **SHARED, "block_size": "*int:1", "halo_size": "*int:0", "query_stride": "int:1"}
        | {"relative_embedding": "tensor?:float", "border": "choice:mask|zero", "legacy_offsets": "bool"},
        _halo,
        rules.halo,
    ),
    "latent_attention": (
        dict.fromkeys(("q", "latent", "key_weight", "value_weight"), "*tensor:float")
        | {"q_rotary": "tensor?:float", "k_rotary": "tensor?:float", "scale": "float?", "is_causal": "bool"}
        | {"attn_mask": "tensor?:mask", **_PACKING, "form": "choice?:naive|absorbed"},
        _latent,
        rules.latent,
    ),
    "neighborhood_attention": (
        {**FLOATS, **_BOTH, **_PACKING, "window_size": "*per_axis", "dilation": "per_axis", "stride": "per_axis"}
        | {"is_causal": "per_axis:bool", "border": "choice:shift|truncate", "relative_bias": "tensor?:float"}
        | {"additional_keys": "tensor?:float", "additional_values": "tensor?:float"},
        _neighborhood,
        rules.neighborhood,
    ),
    "pointer_scores": (
        {"queries": "*tensor:float", "keys": "*tensor:float", "kind": "choice:additive|bilinear"}
        | {"weight": "tensor?:float", "chunk_size": "int?:1", "backend": "choice?:reference|torch"},
        _pointer,
        rules.pointer,
    ),
    "power_law_operator": (
        dict.fromkeys(("a", "weight", "bias", "exponent", "mix", "mix_bias"), "*tensor:float")
        | {"backend": "choice?:reference|torch"},
        _power_law,
        rules.power_law,
    ),
    "routed_attention": (
        {**FLOATS, **SHARED, **_PACKING, "gates": "*tensor:mask", "is_causal": "bool", "attn_mask": "tensor?:mask"}
        | {"form": "choice?:gathered|dense"},
        _routed,
        rules.routed,
    ),
    "relative_kernel_attention": (
        {**FLOATS, **_PACKING, "relative_bias": "*tensor:float", "feature_map": FEATURES, "is_causal": "bool"}
        | {"key_mask": "tensor?:bool", "max_seqlen": "int?:0", "algorithm": "choice?:tiles|fft|fft-float64"}
        | {"backend": "choice?:reference|torch|cpp"},
        _relative,
        rules.relative,
    ),
    "merge_attention": ({"outs": "*tensors:float", "lses": "*tensors:float"}, _merge, rules.merge),
    "toeplitz": (
        {"coefficients": "*tensor:float", "x": "*tensor:float", "space_dims": "int", "is_causal": "bool"}
        | {"fft_dtype": "dtype?", "backend": "choice?:reference|torch"},
        _toeplitz,
        rules.toeplitz,
    ),
}


def draw_operator(rng: random.Random, name: str, *, of_reference: bool = False) -> Call:
    """A legal call of one operator, or of its reference, which has no choice of a form."""
    kinds, draw, rule = OPERATORS[name]
    arguments = draw(rng, some_dtype(rng))
    if of_reference:
        kinds = {argument: kind for argument, kind in kinds.items() if argument != "backend"}
        arguments.pop("backend", None)
    title = f"{name}_reference" if of_reference else name
    return Call(
        title=title,
        target=f"ops.{title}",
        arguments=arguments,
        kinds=kinds,
        rules=rule,
        says=(name,),
        reference=f"ops.{name}_reference",
    )
