"""Random legal configurations of the operators, harder than what `operators` draws: strides, decays, scales, sizes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from tests.fuzz.calls import optional, packing, pick
from tests.fuzz.operators import packed

__all__ = ["CONFIGURATIONS", "FORMS", "Configuration", "draw_configuration"]


class Configuration(NamedTuple):
    """Arguments as expressions, and the forms that must agree with the definition."""

    operator: str
    dtype: str
    arguments: dict[str, str]
    forms: tuple[str, ...]


PLAIN = ("torch", "reference")
# form -> further arguments, and the back-end of the context
FORMS: dict[str, tuple[dict[str, str], str | None]] = {
    "cpp": ({}, "cpp"),
    "torch": ({}, "torch"),
    "reference": ({}, "reference"),
    "tiles, cpp": ({"algorithm": "'tiles'"}, "cpp"),
    "tiles, torch": ({"algorithm": "'tiles'"}, "torch"),
    "fft": ({"algorithm": "'fft'"}, None),
    "fft-float64": ({"algorithm": "'fft-float64'"}, None),
}


def numbers(rng: random.Random, dtype: str, *sizes: int, times: float = 1.0, whole: bool = False) -> str:
    """Expression of numbers, often with awkward strides."""
    if whole:
        return f"torch.randint(-3, 4, ({', '.join(map(str, sizes))},)).to(torch.{dtype})"
    end = "" if dtype == "float32" else f", dtype=torch.{dtype}"
    factor = "" if times == 1.0 else f" * {times}"

    def made(*shape: int) -> str:
        return f"torch.randn({', '.join(map(str, shape))}{end}){factor}"

    how = rng.random()
    if len(sizes) < 2 or how < 0.5:
        return made(*sizes)
    if how < 0.65:
        return f"({made(*sizes[:-1], 2 * sizes[-1])})[..., ::2]"
    if how < 0.75:
        return f"({made(*sizes[:-1], 1)}).expand({', '.join(map(str, sizes))})"
    if how < 0.85:
        return f"({made(*sizes[:-1], sizes[-1] + 3)})[..., 3:]"
    first, second = rng.sample(range(len(sizes)), 2)
    turned = list(sizes)
    turned[first], turned[second] = turned[second], turned[first]
    return f"({made(*turned)}).transpose({first}, {second})"


class _Sizes(NamedTuple):
    batch: int
    heads: int
    kv_heads: int
    width: int
    values: int


def _sizes(rng: random.Random, batch: int | None = None) -> _Sizes:
    kv_heads = rng.choice([1, 2, 3])
    widths = rng.choice([1, 2, 3, 4, 5, 8, 16, 17])
    heads = kv_heads * rng.choice([1, 2, 3])
    return _Sizes(batch or rng.choice([1, 2, 3]), heads, kv_heads, widths, rng.choice([1, 2, 5, 7, 16]))


def _qkv(
    rng: random.Random, dtype: str, n: _Sizes, queries: list[int], keys: list[int], *, whole: bool = False
) -> dict:
    return {
        "q": numbers(rng, dtype, n.batch, *queries, n.heads, n.width, whole=whole),
        "k": numbers(rng, dtype, n.batch, *keys, n.kv_heads, n.width, whole=whole),
        "v": numbers(rng, dtype, n.batch, *keys, n.kv_heads, n.values),
    }


def _packed(rng: random.Random, tokens: int) -> dict[str, str]:
    return {"cu_seqlens": f"torch.tensor({packing(rng, tokens)}, dtype=torch.{rng.choice(['int32', 'int64'])})"}


def _scale(rng: random.Random, dtype: str, *, is_exact: bool) -> dict[str, str]:
    """Any scale; extreme ones are powers of two where products of whole numbers are exact, so that no digit is lost."""
    if is_exact:
        power = rng.choice([-100, -60, -20, -3, 0, 1, 4, 12, 30, 60]) if "16" not in dtype else rng.choice([-6, 0, 3])
        return {"scale": f"{rng.choice(['', '', '-'])}2.0**{power}"}
    return optional(rng, 0.4, scale=pick(rng, [0.3, 1.0, 0, -0.5, 1e-3]))


def _decay(rng: random.Random, dtype: str, n: _Sizes, lead: list[int]) -> str:
    heads = rng.choice([n.heads, n.kv_heads])
    lead = [1, *lead[1:]] if len(lead) == 2 and rng.random() < 0.2 else lead  # of one row, for all
    shape = rng.choice([[heads], [*lead, heads], [*lead, heads, n.width]])
    text = f"-({numbers(rng, dtype, *shape, times=rng.choice([1e-3, 0.1, 1.0, 30.0]))}).abs()"
    if rng.random() < 0.3:
        return f"({text}).masked_fill(torch.rand({', '.join(map(str, shape))}) < 0.2, -inf)"
    return text


def _linear(rng: random.Random, dtype: str) -> Configuration:
    tokens = rng.choice([1, 2, 5, 17, 33, 64, 70])
    n, given = _sizes(rng), {}
    rows = n.batch
    if rng.random() < 0.3:
        n, given = n._replace(batch=1), _packed(rng, tokens)
        rows = given["cu_seqlens"].count(",") - 1
    causal = rng.random() < 0.8
    state = "float64" if dtype == "float64" else "float32"
    times = rng.choice(["", "-", "0.0 * "])
    exact = rng.choice(["1e-30", "1e18", "1.0", "1e-6"]) if "16" not in dtype else "0.5"
    arguments = {
        **_qkv(rng, dtype, n, [tokens], [tokens]),
        **given,
        **({} if causal else {"is_causal": "False"}),
        **optional(rng, 0.7 if causal else 0.0, log_decay=_decay(rng, dtype, n, [n.batch, tokens])),
        **optional(rng, 0.4, initial_state=numbers(rng, state, rows, n.heads, n.width, n.values)),
        **optional(rng, 0.4, scale=times + exact),
        **optional(rng, 0.5, output_final_state="True"),
        **optional(rng, 0.4, chunk_size=pick(rng, [1, 2, 8, 16, 64, 128])),
    }
    return Configuration("linear_attention", dtype, arguments, ("cpp", *PLAIN) if causal else PLAIN)


def _delta(rng: random.Random, dtype: str) -> Configuration:
    tokens = rng.choice([1, 2, 5, 17, 33, 64, 70])
    n, given = _sizes(rng), {}
    rows = n.batch
    if rng.random() < 0.3:
        n, given = n._replace(batch=1), _packed(rng, tokens)
        rows = given["cu_seqlens"].count(",") - 1
    state = "float64" if dtype == "float64" else "float32"
    tensors, own = _qkv(rng, dtype, n, [tokens], [tokens]), rng.choice([n.heads, n.kv_heads])
    decay = f"-({numbers(rng, dtype, n.batch, tokens, own, times=rng.choice([1e-3, 0.1, 1.0, 30.0]))}).abs()"
    if rng.random() < 0.3:
        decay = f"({decay}).masked_fill(torch.rand({n.batch}, {tokens}, {own}) < 0.2, -inf)"
    arguments = {
        **tensors,
        "k": f"torch.nn.functional.normalize({tensors['k']}, dim=-1)",
        "beta": f"{rng.choice(['', '2 * '])}({numbers(rng, dtype, n.batch, tokens, own)}).sigmoid()",
        **given,
        **optional(rng, 0.7, log_decay=decay),
        **optional(rng, 0.4, initial_state=numbers(rng, state, rows, n.heads, n.width, n.values)),
        **optional(rng, 0.4, scale=pick(rng, [0.3, 1.0, 0, -0.5, 1e-3])),
        **optional(rng, 0.5, output_final_state="True"),
        **optional(rng, 0.4, chunk_size=pick(rng, [1, 3, 8, 16, 64, 128])),
    }
    return Configuration("gated_delta_rule", dtype, arguments, PLAIN)


def _kernel(rng: random.Random, dtype: str) -> Configuration:
    _, _, arguments, forms = _linear(rng, dtype)
    for absent in ("scale", "chunk_size"):
        arguments.pop(absent, None)
    arguments["feature_map"] = pick(rng, ["elu+1", "relu", "silu"])
    if rng.random() < 0.5:
        arguments |= {"feature_map": "'elu+1'", "denominator": pick(rng, ["ops.Denominator()"]).strip("'\"")}
        # sums that are negative or tiny have no digits to compare
        arguments.pop("initial_state", None)
        if "-inf" not in arguments.get("log_decay", "") and rng.random() < 0.3:
            arguments["position_map"] = "lambda x: x * 2.0"
            arguments.pop("output_final_state", None)
    return Configuration("kernel_attention", dtype, arguments, forms)


def _step(rng: random.Random, dtype: str) -> Configuration:
    n = _sizes(rng)
    state, rows = "float64" if dtype == "float64" else "float32", n.batch
    given, forms = {}, ("cpp", *PLAIN)
    if rng.random() < 0.4:
        rows, forms = n.batch + rng.randint(0, 2), PLAIN
        slots = [-1 if rng.random() < 0.2 else place for place in rng.sample(range(rows), n.batch)]
        given["state_slots"] = f"torch.tensor({slots})"
    size = rng.choice([1.0, 100.0])
    pool = f"({numbers(rng, state, rows, n.heads, n.width, n.values, times=size)}).contiguous()"
    arguments = {
        "q": numbers(rng, dtype, n.batch, n.heads, n.width),
        "k": numbers(rng, dtype, n.batch, n.kv_heads, n.width),
        "v": numbers(rng, dtype, n.batch, n.kv_heads, n.values),
        "state": pool,
        **given,
        **optional(rng, 0.7, log_decay=_decay(rng, dtype, n, [n.batch])),
        **optional(rng, 0.3, scale=pick(rng, [0.3, 1, -2.0])),
    }
    return Configuration("linear_attention_step", dtype, arguments, forms)


def _kernel_step(rng: random.Random, dtype: str) -> Configuration:
    _, _, arguments, _ = _step(rng, dtype)
    if "state_slots" in arguments:
        return _kernel_step(rng, dtype)
    arguments.pop("scale", None)
    return Configuration(
        "kernel_attention_step",
        dtype,
        {**arguments, "feature_map": pick(rng, ["elu+1", "relu", "silu"])},
        ("cpp", *PLAIN),
    )


def _mask(rng: random.Random, dtype: str, *shape: int) -> str:
    sizes = ", ".join(map(str, shape))
    kinds = [
        f"torch.rand({sizes}) > 0.3",
        numbers(rng, dtype, *shape),
        f"torch.zeros({sizes}).masked_fill(torch.rand({sizes}) > 0.6, -inf)",
    ]
    return rng.choice(kinds)


def _softmax(rng: random.Random, dtype: str) -> Configuration:
    queries, n, given = rng.choice([1, 2, 7, 19, 33]), _sizes(rng), {}
    keys = max(queries + rng.choice([0, 0, 0, 1, 9, -1]), 1)
    is_exact = rng.random() < 0.4
    if rng.random() < 0.25:
        keys = queries if rng.random() < 0.6 else rng.choice([1, 5, 24])
        n, given = (
            n._replace(batch=1),
            packed(rng, _packed(rng, queries)["cu_seqlens"], keys if keys != queries else None),
        )
    elif rng.random() < 0.4:
        shape = rng.choice(
            [[n.batch, n.heads, queries, keys], [n.batch, 1, 1, keys], [queries, keys], [n.heads, 1, keys]]
        )
        mask = _mask(rng, dtype, *shape)
        given["attn_mask"] = f"torch.rand({', '.join(map(str, shape))}) > 0.4" if is_exact else mask
    arguments = {
        **_qkv(rng, dtype, n, [queries], [keys], whole=is_exact),
        **given,
        **_scale(rng, dtype, is_exact=is_exact),
        **optional(rng, 0.4, is_causal="True"),
        **optional(rng, 0.4, return_lse="True"),
    }
    return Configuration("softmax_attention", dtype, arguments, PLAIN)


def _block(rng: random.Random, dtype: str) -> Configuration:
    n, space = _sizes(rng), [rng.choice([1, 3, 4, 5, 7]) for _ in range(rng.choice([1, 2, 2, 3]))]
    is_exact, pattern = rng.random() < 0.4, rng.choice(["window", "grid", "axial"])
    if pattern == "axial":
        axis = rng.randrange(-len(space), len(space))
        given, tokens = {"axis": repr(axis), **optional(rng, 0.4, is_causal="True")}, space[axis]
    else:
        sides = tuple(rng.choice([1, 2, 3, 4]) for _ in space)
        given, tokens = {"block_size": repr(sides)}, 1
        for side in sides:
            tokens *= side
    mask = (
        f"torch.rand({n.heads}, {tokens}, {tokens}) > 0.4" if is_exact else _mask(rng, dtype, n.heads, tokens, tokens)
    )
    arguments = {
        **_qkv(rng, dtype, n, space, space, whole=is_exact),
        "pattern": repr(pattern),
        **given,
        **_scale(rng, dtype, is_exact=is_exact),
        **optional(rng, 0.4, attn_mask=mask),
    }
    return Configuration("block_attention", dtype, arguments, PLAIN)


def _neighborhood(rng: random.Random, dtype: str) -> Configuration:
    n, rank = _sizes(rng), rng.choice([1, 1, 2, 3])
    space = [rng.choice([3, 4, 7, 9] if rank < 3 else [2, 3, 4]) for _ in range(rank)]
    is_exact, given = rng.random() < 0.4, {}
    windows = [rng.randint(1, side) for side in space]
    if rank == 1 and rng.random() < 0.3:
        n, given = n._replace(batch=1), {**_packed(rng, space[0]), "is_causal": "True"}
    else:
        dilations = tuple(rng.randint(1, side // window) for side, window in zip(space, windows))
        given = {
            **optional(rng, 0.4, dilation=repr(dilations)),
            **optional(rng, 0.4, stride=repr(tuple(rng.randint(1, window) for window in windows))),
            **optional(rng, 0.4, is_causal=repr(tuple(rng.random() < 0.5 for _ in space))),
        }
        if rng.random() < 0.3:
            windows = [window + rng.choice([0, 1, 6]) for window in windows]
            given["border"] = "'truncate'"
        entries = [2 * window - 1 for window in windows]
        bias = numbers(rng, dtype, n.heads, *entries)
        if rng.random() < 0.3:
            bias = f"({bias}).masked_fill(torch.rand({', '.join(map(str, [n.heads, *entries]))}) < 0.4, -inf)"
        more = rng.choice([1, 3])
        given |= optional(rng, 0.0 if is_exact else 0.4, relative_bias=bias)
        given |= optional(
            rng,
            0.3,
            additional_keys=numbers(rng, dtype, n.batch, more, n.kv_heads, n.width, whole=is_exact),
            additional_values=numbers(rng, dtype, n.batch, more, n.kv_heads, n.values),
        )
    arguments = {
        **_qkv(rng, dtype, n, space, space, whole=is_exact),
        "window_size": repr(tuple(windows)),
        **given,
        **_scale(rng, dtype, is_exact=is_exact),
        **optional(rng, 0.4, return_lse="True"),
    }
    forms = PLAIN if "additional_keys" in given or "cu_seqlens" in given else ("cpp", *PLAIN)
    return Configuration("neighborhood_attention", dtype, arguments, forms)


def _relative(rng: random.Random, dtype: str) -> Configuration:
    n, rank = _sizes(rng), rng.choice([1, 1, 2])
    space = [rng.choice([1, 3, 8, 21] if rank == 1 else [2, 3, 5]) for _ in range(rank)]
    queries, given = space, {}
    if rank == 1 and rng.random() < 0.3:
        n, given = n._replace(batch=1), _packed(rng, space[0]) | {"max_seqlen": repr(space[0])}
    else:
        if rank == 1 and rng.random() < 0.3:
            queries = [rng.randint(1, space[0])]
        given |= optional(rng, 0.3, key_mask=f"torch.rand({', '.join(map(str, [n.batch, *space]))}) > 0.3")
    table = [n.heads, *(2 * rng.choice([1, 2, 6, 30]) - 1 for _ in space)]
    bias, forms = numbers(rng, dtype, *table), ("tiles, cpp", "tiles, torch", "fft", "fft-float64", "reference")
    if rng.random() < 0.3:
        # what transforms lose is documented: an error of 1e-6 of the largest weighted sum
        forms = ("tiles, cpp", "tiles, torch", "reference")
        fill = rng.choice(["-inf", "200.0", "-50.0"])
        bias = f"({bias}).masked_fill(torch.rand({', '.join(map(str, table))}) < 0.3, {fill})"
    arguments = {
        **_qkv(rng, dtype, n, queries, space),
        "relative_bias": bias,
        "feature_map": "'elu+1'",
        **given,
        **optional(rng, 0.4 if rank == 1 else 0.0, is_causal="True"),
    }
    return Configuration("relative_kernel_attention", dtype, arguments, forms)


def _merge(rng: random.Random, dtype: str) -> Configuration:
    shape = [rng.choice([1, 2]), rng.choice([1, 4, 9]), rng.choice([1, 3]), rng.choice([1, 5])]
    parts, of = rng.choice([1, 2, 4]), "float64" if dtype == "float64" else "float32"
    sizes = ", ".join(map(str, shape[:-1]))
    lses = []
    for _ in range(parts):
        lse = numbers(rng, of, *shape[:-1], times=rng.choice([1.0, 1e4]))
        lses.append(f"({lse}).masked_fill(torch.rand({sizes}) < 0.3, -inf)" if rng.random() < 0.5 else lse)
    outs = [numbers(rng, dtype, *shape) for _ in range(parts)]
    return Configuration(
        "merge_attention", dtype, {"outs": f"[{', '.join(outs)}]", "lses": f"[{', '.join(lses)}]"}, PLAIN
    )


def _toeplitz(rng: random.Random, dtype: str) -> Configuration:
    axes = rng.choice([1, 1, 2])
    inside = [rng.choice([1, 2, 7, 20] if axes == 1 else [1, 3, 5]) for _ in range(axes)]
    offsets = [m + rng.choice([0, 1, 6]) for m in inside]
    lead = rng.choice([[], [2], [3, 1], [2, 3]])
    times = rng.choice([1.0, 1e-20, 1e15])
    arguments = {
        "coefficients": numbers(rng, dtype, *rng.choice([lead, [], [1]]), *offsets, times=times),
        "x": numbers(rng, dtype, *lead, *inside),
        "space_dims": repr(axes),
        **optional(rng, 0.3 if axes == 1 else 0.0, is_causal="True"),
        **optional(rng, 0.3, fft_dtype="torch.float64"),
    }
    if "16" in dtype:
        arguments["coefficients"] = numbers(rng, dtype, *offsets)
    return Configuration("toeplitz", dtype, arguments, PLAIN)


def _rotary(rng: random.Random, dtype: str) -> Configuration:
    batch, tokens = rng.choice([1, 2]), rng.choice([1, 7, 20])
    shape = rng.choice([[tokens], [batch, tokens]])
    arguments = {
        "x": numbers(rng, dtype, batch, tokens, 3, 2 * rng.choice([1, 2, 5])),
        "positions": f"torch.randint({rng.choice([5, 100])}, {tuple(shape)})",
        **optional(rng, 0.4, base=pick(rng, [10000.0, 100, 2.5])),
    }
    return Configuration("rotary_embedding", dtype, arguments, ("plain",))


CONFIGURATIONS: dict[str, Callable[[random.Random, str], Configuration]] = {
    "linear_attention": _linear,
    "kernel_attention": _kernel,
    "linear_attention_step": _step,
    "kernel_attention_step": _kernel_step,
    "softmax_attention": _softmax,
    "block_attention": _block,
    "neighborhood_attention": _neighborhood,
    "relative_kernel_attention": _relative,
    "merge_attention": _merge,
    "toeplitz": _toeplitz,
    "rotary_embedding": _rotary,
    "gated_delta_rule": _delta,
}


def draw_configuration(seed: int, index: int) -> Configuration:
    """Configuration number `index`."""
    rng = random.Random(f"{seed} {index}")
    dtype = rng.choices(["float64", "float32", "float16", "bfloat16"], [4, 4, 1, 1])[0]
    return CONFIGURATIONS[rng.choice(list(CONFIGURATIONS))](rng, dtype)
