"""Layers of the catalogue and the modules beside them: how they are built, called and decoded with."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

from attensor.catalogue import load, mechanisms
from tests.fuzz import operator_rules
from tests.fuzz.calls import Call, evaluate, need, packing, randn, size
from tests.fuzz.operator_rules import NOTHING, per_axis
from tests.fuzz.operators import OPERATORS

__all__ = ["LAYERS", "draw_layer", "names_of_layers"]

Arguments = dict[str, Any]
Choices = dict[str, tuple[str, list[str]]]  # option -> its kind and legal values
SIZES = {"hidden_size": "*int:1", "num_heads": "*int:1"}
PLACE = {"device": "device?", "dtype": "dtype?"}
FEATURES = "feature_map?:elu+1|relu|silu|positive-random|learned"
NORMS, GATES = "choice?:rms|layer|rms-all-heads|simple-rms", "choice?:swish|sigmoid|linear"
SLOPES = ("choice:alibi|minimax|linear", ["'alibi'", "'minimax'", "'linear'"])
KV = ("int?:1", ["None", "1", "3"])
BOTH = ["True", "False"]
ROTARY = ("float?", ["None", "10000.0", "100"])
STACK: Choices = {"layer_index": ("int:0", ["0", "1"]), "num_layers": ("int:1", ["2", "3"])}


def _heads(a: Arguments) -> None:
    need(a["hidden_size"] % a["num_heads"] == 0, "hidden_size: heads do not divide it")
    kv = a.get("num_kv_heads")
    need(kv is None or a["num_heads"] % kv == 0, "num_kv_heads: no divisor")


def _latent(a: Arguments) -> None:
    if a.get("nope_dim") is None:
        _heads(a)
    latents = a.get("num_latents")
    need(latents is None or a["num_heads"] % latents == 0, "num_latents: no divisor")
    need((a.get("rotary_dim") or 2) % 2 == 0, "rotary_dim: odd")
    if isinstance(a.get("slicing"), dict):
        need((a.get("kv_rank") or 2) % a["slicing"].get("groups", 2) == 0, "slicing, kv_rank: no multiple")


def _half(a: Arguments) -> None:
    _heads(a)
    need(a["hidden_size"] % 2 == 0 and a["hidden_size"] // 2 % a["num_heads"] == 0, "hidden_size: C / 2 over the heads")


def _delta(a: Arguments) -> None:
    heads, width = a["num_heads"], a.get("head_dim")
    need(heads % (a.get("num_qk_heads") or heads) == 0, "num_qk_heads: no divisor")
    if width is None:
        _half(a)
        width = a["hidden_size"] // 2 // heads
    values = width * a.get("expand_v", 2.0)
    need(round(values) >= 1 and abs(round(values) - values) <= 1e-5 * values, "expand_v: no whole width")


def _gated(a: Arguments) -> None:
    _half(a)
    need(a.get("clamp_min") is None or a["clamp_min"] <= 0, "clamp_min: above 0")


def _linear(a: Arguments) -> str | None:
    _heads(a)
    for name in ("key_size", "value_size"):
        need(a.get(name) is None or a[name] % a["num_heads"] == 0, f"{name}: heads do not divide it")
    mapped = a.get("feature_map")
    if a.get("normalize") and mapped in (None, "silu"):
        return "normalize: features that may be negative"
    return "feature_map: seen when called" if callable(mapped) else None


def _stack(a: Arguments) -> None:
    _heads(a)
    need(a.get("layer_index", 0) < a.get("num_layers", 1), "layer_index, num_layers: outside the stack")


def _power_law(a: Arguments) -> None:
    _even(a)
    need(max(a.get("units", 1), a.get("depth", 1)) < 4096, "units, depth: below 4096")


def _even(a: Arguments) -> None:
    _heads(a)
    need(a["hidden_size"] // a["num_heads"] % 2 == 0, "hidden_size: odd width of a head")


def _rotary(a: Arguments) -> str | None:
    _heads(a)
    base = a.get("rotary_base", 10_000.0)
    need(base is None or base > 0, "rotary_base: not positive")
    need(base is None or a["hidden_size"] // a["num_heads"] % 2 == 0, "hidden_size: odd width of a head")
    return None if base is None or base > 1 else "rotary_base: at most 1"


def _softmax(a: Arguments) -> str | None:
    need(0 <= a.get("dropout_p", 0.0) < 1, "dropout_p: range")
    return _rotary(a)


def _taylor(a: Arguments) -> str | None:
    return _rotary({"rotary_base": None, **a})


def _moh(a: Arguments) -> str | None:
    heads, shared, active = a["num_heads"], a.get("num_shared"), a.get("num_active", 0.75)
    need(active > 0, "num_active: not positive")
    active = max(1, round(active * heads) if active < 1 else int(active))
    need(active <= heads, "num_active: more than heads")
    if shared is not None:
        need(shared >= 0, "num_shared: negative")
        shared = round(shared * heads) if 0 < shared < 1 else int(shared)
        need(shared < active or shared == active == heads, "num_shared: not below num_active")
    return _softmax(a)


def _l2vit(a: Arguments) -> None:
    _heads(a)
    need(a.get("denominator_minimum", 100.0) > 0, "denominator_minimum: not positive")


def _rala(a: Arguments) -> None:
    _heads(a)
    need(not a.get("rotary", True) or a["hidden_size"] // a["num_heads"] % 4 == 0, "hidden_size: cannot be turned")


def _relative(a: Arguments) -> None:
    _heads(a)
    need(a.get("space_dims", 1) in (1, 2), "space_dims")
    need(a.get("space_dims", 1) == 1 or not a.get("is_causal", True), "is_causal: grid")


def _neighborhood(a: Arguments) -> str | None:
    _heads(a)
    values = {"window_size": a.get("window_size", 7), "dilation": a.get("dilation", 1), "stride": a.get("stride", 1)}
    values["is_causal"] = a.get("is_causal", False)
    lengths = {len(x) for x in values.values() if isinstance(x, (tuple, list))}
    need(len(lengths) <= 1 and lengths <= {1, 2, 3}, "window_size, dilation, stride, is_causal: number of axes")
    windows, dilations, strides, _ = (per_axis(x, *(lengths or {1}), name) for name, x in values.items())
    need(all(x >= 1 for x in [*windows, *dilations, *strides]), "window_size, dilation, stride: below 1")
    need(a.get("border") != "truncate" or a.get("padding") != "visible", "padding, border: visible and truncate")
    return "stride: larger than the window" if any(s > w for s, w in zip(strides, windows)) else None


def _axial(a: Arguments) -> None:
    _heads(a)
    need(a.get("axis") is None or a["axis"] < 3, "axis: of no grid")


def _halo(a: Arguments) -> None:
    for name in ("key_size", "value_size"):
        size = a["hidden_size"] if a.get(name) is None else a[name]
        need(size % a["num_heads"] == 0, f"{name}, hidden_size: heads do not divide it")
    stride = a.get("query_stride", 1)
    need(a.get("block_size", 8) % stride == 0, "block_size, query_stride: no multiple")


LAYERS: dict[str, tuple[Choices, Callable[[Arguments], str | None]]] = {
    "SoftmaxAttention": (
        {
            "num_kv_heads": KV,
            "is_causal": ("bool", BOTH),
            "rotary_base": ROTARY,
            "dropout_p": ("float", ["0.0", "0.5"]),
        },
        _softmax,
    ),
    "SlidingWindowAttention": (
        {"num_kv_heads": KV, "window_size": ("int:1", ["1", "3", "64"]), "rotary_base": ROTARY},
        _rotary,
    ),
    "GatedDeltaNet": (
        {"num_qk_heads": ("int?:1", ["None", "1"]), "head_dim": ("int?:1", ["None", "5"])}
        | {"expand_v": ("float", ["2.0", "1"]), "conv_size": ("int?:1", ["None", "1", "4"])}
        | dict.fromkeys(("use_gate", "conv_bias", "allow_neg_eigval"), ("bool", BOTH)),
        _delta,
    ),
    "MixtureOfHeads": (
        {"num_shared": ("float?", ["None", "0", "1", "0.4"]), "num_active": ("float", ["2", "3", "0.75"])}
        | {"router": ("choice:linear|query-norm", ["'linear'", "'query-norm'"])}
        | {"gate_scale": ("choice:code|paper|hard", ["'code'", "'paper'", "'hard'"])}
        | {"straight_through": ("choice:all|chosen", ["'all'", "'chosen'"])},
        _moh,
    ),
    "LatentAttention": (
        {"kv_rank": ("int?:1", ["None", "5"]), "q_rank": ("int?:1", ["None", "7"]), "nope_dim": ("int?:1", ["4"])}
        | {"rotary_dim": ("int?:2", ["None", "6"]), "value_dim": ("int?:1", ["None", "3"])}
        | {"slicing": ("instance?:Slicing", ["None"])},
        _latent,
    ),
    "PowerLawGraphAttention": (
        {
            "operator": (
                "choice:previous-blocks|sequence|fixed",
                ["'previous-blocks'", "'sequence'", "'fixed'"],
            ),
            "units": ("int:1", ["1", "2"]),
            "depth": ("int:1", ["1", "2"]),
            "net_size": ("int:1", ["3"]),
            "block_size": ("int:1", ["1", "4"]),
            "interleaved": ("bool", BOTH),
        },
        _power_law,
    ),
    "GroupedLatentAttention": (
        {"num_latents": ("int?:1", ["None", "1", "3"]), "kv_rank": ("int?:1", ["None", "5"])}
        | {"q_rank": ("int?:1", ["None", "7"]), "rotary_dim": ("int?:2", ["None", "6"])},
        _latent,
    ),
    "LinearAttention": (
        {"num_kv_heads": KV, "key_size": ("int?:1", ["None", "6", "24"]), "value_size": ("int?:1", ["None", "6"])}
        | {"feature_map": (FEATURES, ["None", "'elu+1'", "'learned'", "'positive-random'", "'relu'"])}
        | {"normalize": ("bool", ["False"]), "norm": (NORMS, ["None", "'rms'", "'layer'", "'simple-rms'"])}
        | {"output_gate": (GATES, ["None", "'swish'"])},
        _linear,
    ),
    "GatedLinearAttention": (
        {"num_kv_heads": KV, "norm": ("choice:rms|layer", ["'rms'", "'layer'"]), "gate_bias": ("bool", BOTH)}
        | {"clamp_min": ("float?", ["None", "-1.0"])},
        _gated,
    ),
    "ScalarGatedLinearAttention": ({"num_kv_heads": KV}, _half),
    "LightningAttention": ({"slopes": SLOPES, **STACK}, _stack),
    "TransNormerAttention": ({"use_lrpe": ("bool?", ["None", *BOTH]), "slopes": SLOPES, **STACK}, _stack),
    "Retention": ({}, _even),
    "TaylorAttention": (
        {"num_kv_heads": KV, "second_order": ("choice:diagonal|full", ["'diagonal'", "'full'"])}
        | {"normalize": ("choice:joint|separate", ["'joint'", "'separate'"])}
        | {"rotary_base": ROTARY, "qkv_bias": ("bool", BOTH), "qk_norm": ("bool", BOTH)},
        _taylor,
    ),
    "KeyScoredAttention": ({"qkv_bias": ("bool", BOTH), "qk_norm": ("bool", BOTH)}, _heads),
    "RelativeKernelAttention": (
        {"num_features": ("int:1", ["5"]), "max_distance": ("int:1", ["1", "6"]), "space_dims": ("int", ["1"])}
        | {"is_causal": ("bool", BOTH), "normalize": ("bool", BOTH)},
        _relative,
    ),
    "AxialAttention": (
        {"is_causal": ("bool", BOTH), "layer_index": ("int:0", ["0", "1"]), "axis": ("int?:0", ["None", "0", "1"])},
        _axial,
    ),
    "GlobalLinearAttention": (
        {"denominator_minimum": ("float", ["100.0", "1"]), "local_concentration": ("bool", BOTH)},
        _l2vit,
    ),
    "NeighborhoodAttention": (
        {
            "window_size": ("per_axis", ["3", "(3, 2)"]),
            "dilation": ("per_axis", ["1"]),
            "stride": ("per_axis", ["1", "2"]),
        }
        | {"is_causal": ("per_axis:bool", BOTH), "relative_bias": ("bool", BOTH)}
        | {"border": ("choice:shift|truncate", ["'shift'", "'truncate'"])}
        | {"padding": ("choice:none|visible", ["'none'", "'visible'"])},
        _neighborhood,
    ),
    "RankAugmentedLinearAttention": (
        dict.fromkeys(("kv_weighting", "output_gate", "rotary", "lepe"), ("bool", BOTH))
        | {"attention": ("choice:linear|softmax", ["'linear'", "'softmax'"])},
        _rala,
    ),
    "DualAttention": (
        {"window_size": ("int:1", ["2", "3"]), "layer_index": ("int:0", ["0", "1"])}
        | {"version": ("choice:1|2", ["1", "2"])},
        _heads,
    ),
    "HaloAttention": (
        {"block_size": ("int:1", ["4"]), "halo_size": ("int:0", ["0", "1"]), "query_stride": ("int:1", ["1", "2"])}
        | {"key_size": ("int?:1", ["None", "6", "24"]), "value_size": ("int?:1", ["None", "6"])}
        | {"output_projection": ("bool", BOTH), "as_timm": ("bool", BOTH)},
        _halo,
    ),
    "CosineAttention": ({}, _heads),
    "AggregatedAttention": ({"reduction": ("int:1", ["1", "2", "8"])}, _heads),
    "WindowGridAttention": (
        {"block_size": ("int:1", ["2", "3"]), "layer_index": ("int:0", ["0", "1"]), "relative_bias": ("bool", BOTH)}
        | {"pattern": ("choice:alternate|window|grid", ["'alternate'", "'window'", "'grid'"])}
        | {"padding": ("choice:hidden|visible", ["'hidden'", "'visible'"])},
        _heads,
    ),
}
GRIDS = ("AxialAttention", "GlobalLinearAttention", "NeighborhoodAttention", "RankAugmentedLinearAttention")
GRIDS = (*GRIDS, "WindowGridAttention", "DualAttention", "HaloAttention", "CosineAttention", "AggregatedAttention")


def names_of_layers() -> set[str]:
    """Of all cards."""
    return {load(path).__name__ for card in mechanisms().values() for path in card.layers}


def _options(rng: random.Random, name: str) -> dict[str, str]:
    choices, _ = LAYERS[name]
    return {option: rng.choice(values) for option, (_, values) in choices.items() if rng.random() < 0.4}


def _stack_is_legal(options: dict[str, str]) -> dict[str, str]:
    if "layer_index" in options and "num_layers" not in options:
        options.pop("layer_index")
    return options


def draw_layer(rng: random.Random) -> Call:
    """A legal construction, forward, decoding or new cache of one layer."""
    name = rng.choice(list(LAYERS))
    how = rng.choice(["constructor", "forward", "forward", "cache"])
    if how == "constructor":
        return _constructor(rng, name)
    if name in GRIDS:
        return _grid_forward(rng, name)
    return _forward(rng, name) if how == "forward" else _new_cache(rng, name)


def _constructor(rng: random.Random, name: str) -> Call:
    choices, rule = LAYERS[name]
    options = _options(rng, name)
    if name in ("LightningAttention", "TransNormerAttention"):
        options = _stack_is_legal(options)
    if options.get("border") == "'truncate'":
        options.pop("padding", None)
    return Call(
        title=name,
        target=f"nn.{name}",
        arguments={"hidden_size": rng.choice(["12", "24"]), "num_heads": "3", **options},
        kinds={**SIZES, **{option: kind for option, (kind, _) in choices.items()}, **PLACE},
        rules=rule,
        says=(name,),
        is_constructor=True,
    )


def _layer(name: str, dtype: str, **options: str) -> str:
    given = "".join(f", {option}={text}" for option, text in options.items())
    return f"nn.{name}(12, 3{given}{'' if dtype == 'float32' else f', dtype=torch.{dtype}'})"


def _is_hidden(a: Arguments, dtype: str, *ranks: int) -> str | None:
    x = a["hidden_states"]
    need(x.ndim in ranks, "hidden_states: rank")
    need(x.shape[-1] == 12, "hidden_states: width")
    need(x.dtype == getattr(torch, dtype), "hidden_states: another dtype than the parameters")
    need(x.device.type == "cpu", "hidden_states: device")
    return NOTHING if not x.numel() else None


def _grid_forward(rng: random.Random, name: str) -> Call:
    dtype = rng.choice(["float32", "float64"])
    ranks = {"AxialAttention": (4, 5)}
    ranks |= dict.fromkeys(GRIDS[3:], (4,))
    space = [size(rng, [4, 5]), size(rng, [6])]
    options = {"denominator_minimum": "1.0"} if name == "GlobalLinearAttention" else {}
    allowed = ranks.get(name, (3, 4, 5))
    return Call(
        title=f"{name}.forward",
        target=_layer(name, dtype, **options),
        arguments={"hidden_states": randn(dtype, size(rng, [1, 2]), *space, 12)},
        kinds={"hidden_states": "*tensor:float"},
        rules=lambda a: _is_hidden(a, dtype, *allowed),
        says=(name,),
    )


def _forward(rng: random.Random, name: str) -> Call:
    dtype, tokens = rng.choice(["float32", "float64"]), size(rng, [1, 3, 7])
    options = {"SlidingWindowAttention": {"window_size": "3"}, "RelativeKernelAttention": {"num_features": "5"}}
    layer = _layer(name, dtype, **options.get(name, {}))
    batch, given = size(rng, [1, 2]), {}
    if rng.random() < 0.5:
        given["cache"] = rng.choice([f"{layer}.new_cache({batch})", f"used({layer}, {batch}, 4)"])
    elif rng.random() < 0.5:
        batch, given = 1, {"cu_seqlens": f"torch.tensor({packing(rng, tokens)})"}

    def rules(a: Arguments) -> str | None:
        # these read space as one row
        unsaid = _is_hidden(
            a, dtype, *((3, 4, 5) if name in ("SoftmaxAttention", "SlidingWindowAttention", "MixtureOfHeads") else (3,))
        )
        x = a["hidden_states"]
        if a.get("cache") is not None:
            need(a.get("cu_seqlens") is None, "cache, cu_seqlens: together")
            _is_cache_of(a["cache"], layer, x.shape[0])
        operator_rules.cu_seqlens({"q": x, **a}, x.shape[1:-1].numel(), x.shape[0])
        return unsaid

    return Call(
        title=f"{name}.forward",
        target=layer,
        arguments={"hidden_states": randn(dtype, batch, tokens, 12), **given},
        kinds={"hidden_states": "*tensor:float", "cache": "cache?", "cu_seqlens": "tensor?:integers"},
        rules=rules,
        says=(name, "TokenCache", "StateCache", *OPERATORS),
    )


def _is_cache_of(cache: Any, layer: str, batch: int) -> None:
    """By what the public side of a cache shows: names, sizes, windows, rows, device."""
    own = evaluate(layer).new_cache(batch)
    need(type(cache) is type(own), "cache: of another kind")
    held, wanted = cache.state_dict(), own.state_dict()
    need(set(held) == set(wanted) and cache.can_crop == own.can_crop, "cache: of another layer")
    for part in held:
        if part in ("length", "first"):
            continue
        # tokens of a TokenCache differ
        is_of_tokens = hasattr(own, "append") or part.startswith("tokens.")
        sizes = [list(x[part].shape[2 if is_of_tokens else 1 :]) for x in (held, wanted)]
        need(sizes[0] == sizes[1], "cache: of another layer")
        need(held[part].shape[0] == batch, "cache: of another batch")
        need(held[part].device == wanted[part].device, "cache: on another device")


def _new_cache(rng: random.Random, name: str) -> Call:
    def rules(a: Arguments) -> str | None:
        most = a.get("max_length")
        if a["batch_size"] > 10**6 or (most is not None and most > 10**6):
            return "max_length: more than there is memory"
        return "batch_size: none" if a["batch_size"] == 0 else None

    return Call(
        title=f"{name}.new_cache",
        target=f"{_layer(name, 'float32')}.new_cache",
        arguments={"batch_size": "2", **({"max_length": "7"} if rng.random() < 0.5 else {})},
        kinds={"batch_size": "*int:0", "max_length": "int?:0", **PLACE},
        rules=rules,
        says=(name,),
        is_constructor=True,
    )
