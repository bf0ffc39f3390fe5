"""Functions and modules beside operators and layers: positions, padding, features, caches, measures, models."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import torch

from tests.fuzz.calls import Call, Rules, evaluate, need, optional, packing, pick, randn
from tests.fuzz.edits import EDITS
from tests.fuzz.knowledge import KNOWLEDGE
from tests.fuzz.measures import MEASURES
from tests.fuzz.operator_rules import NOTHING, cu_seqlens, same_device, shape

__all__ = ["HELPERS", "draw_helper"]

Arguments = dict[str, Any]
WEIGHTS = "tensor?:bool"
PLACE = {"device": "device?", "dtype": "dtype?"}


def _rotary(rng: random.Random) -> tuple[str, dict[str, str]]:
    batch, tokens = rng.choice([1, 2]), rng.choice([3, 7])
    shape = rng.choice([[tokens], [batch, tokens]])
    return "nn.rotary_embedding", {
        "x": randn(rng.choice(["float32", "float64", "float16"]), batch, tokens, 3, rng.choice([2, 4])),
        "positions": f"torch.randint(9, {tuple(shape)})",
        **optional(rng, 0.4, base=pick(rng, [10000.0, 100])),
    }


def _of_rotary(a: Arguments) -> str | None:
    x = a["x"]
    need(x.ndim == 4 and x.shape[-1] % 2 == 0, "x: rank or odd width")
    shape(a, "positions", [x.shape[1]], [x.shape[0], x.shape[1]])
    same_device(a, x, "positions")
    need(a.get("base", 1e4) > 0, "base: not positive")
    if a["positions"].dtype not in (torch.int32, torch.int64) or a.get("base", 1e4) <= 1:
        return "positions: small integers"
    return None if x.numel() else NOTHING


def _grid_rotary(rng: random.Random) -> tuple[str, dict[str, str]]:
    space = (rng.choice([2, 3]), rng.choice([2, 5]))
    x = randn(rng.choice(["float32", "float64"]), 2, space[0] * space[1], 3, rng.choice([4, 8]))
    return "nn.grid_rotary_embedding", {"x": x, "space": repr(space)}


def _of_grid_rotary(a: Arguments) -> str | None:
    x, space = a["x"], a["space"]
    need(x.ndim == 4 and x.shape[-1] % 4 == 0, "x: rank or width")
    need(isinstance(space, (tuple, list)) and len(space) == 2, "space: two sides")
    need(all(n >= 1 for n in space) or x.shape[1] == 0, "space: below 1")
    need(space[0] * space[1] == x.shape[1], "space: not the tokens")
    need(a.get("base", 1e4) > 0, "base: not positive")
    return "base: at most 1" if a.get("base", 1e4) <= 1 else None if x.numel() else NOTHING


def _positions(rng: random.Random) -> tuple[str, dict[str, str]]:
    tokens = rng.choice([1, 5, 7])
    given = rng.choice(
        [
            {},
            {"offset": "3"},
            {"first": "torch.tensor([0, 2])"},
            {"cu_seqlens": f"torch.tensor({packing(rng, tokens)})"},
        ]
    )
    return "nn.token_positions", {"tokens": repr(tokens), **given, "device": "'cpu'"}


def _of_positions(a: Arguments) -> str | None:
    need(a["tokens"] >= 0 and a.get("offset", 0) >= 0, "tokens, offset: below 0")
    first, bounds = a.get("first"), a.get("cu_seqlens")
    need(first is None or first.ndim == 1, "first: rank")
    if first is not None and first.is_meta:
        return "first: without numbers"
    if first is not None and (first.dtype not in (torch.int32, torch.int64) or bool((first < 0).any())):
        return "first: small integers or below 0"
    if a["tokens"] > 10**6 or a.get("offset", 0) > 2**40:
        return "tokens, offset: very many"
    if bounds is not None and (first is not None or a.get("offset", 0)):
        return "cu_seqlens: with first or offset"
    if bounds is not None:
        cu_seqlens({"cu_seqlens": bounds}, a["tokens"], 1)
    return "device: meta" if str(a["device"]) == "meta" else None


def _unpad(rng: random.Random) -> tuple[str, dict[str, str]]:
    mask = rng.choice(["torch.rand(2, 5) > 0.4", "(torch.rand(2, 5) > 0.4).long()", "torch.ones(2, 5)"])
    return "nn.unpad", {"x": randn("float32", 2, 5, 3), "attention_mask": mask}


def _of_unpad(a: Arguments) -> str | None:
    x, mask = a["x"], a["attention_mask"]
    if x.is_quantized:
        return "x: quantised"
    need(x.ndim >= 2 and mask.shape == x.shape[:2], "attention_mask: shape")
    same_device(a, x, "attention_mask")
    if x.device.type == "meta" or mask.dtype not in (torch.bool, torch.int32, torch.int64, torch.float32):
        return "attention_mask: another dtype"
    return None if bool(((mask == 0) | (mask == 1)).all()) else "attention_mask: neither 0 nor 1"


def _pad(rng: random.Random) -> tuple[str, dict[str, str]]:
    index = sorted(rng.sample(range(10), 6))
    return "nn.pad", {
        "packed": randn("float32", 1, 6, 3),
        "index": f"torch.tensor({index})",
        "batch_size": "2",
        "length": "5",
    }


def _of_pad(a: Arguments) -> str | None:
    packed, index = a["packed"], a["index"]
    if packed.is_quantized:
        return "packed: quantised"
    need(packed.ndim >= 2 and packed.shape[0] == 1, "packed: shape")
    shape(a, "index", [packed.shape[1]])
    same_device(a, packed, "index")
    need(a["batch_size"] >= 0 and a["length"] >= 0, "batch_size, length: below 0")
    room = a["batch_size"] * a["length"]
    if room > 10**6:
        return "batch_size, length: very many"
    if index.is_meta:
        return "index: without numbers"
    need(not index.numel() or (int(index.min()) >= 0 and int(index.max()) < room), "index, batch_size, length: outside")
    return "index: a place twice" if len(index.unique()) < len(index) else None


def _features(rng: random.Random) -> tuple[str, dict[str, str]]:
    target = rng.choice(["PositiveRandomFeatures", "TrigonometricRandomFeatures"])
    dtype = rng.choice(["float32", "float64"])
    options = rng.choice(["", ", normalize=True", ", scale=0.5"])
    return f"ops.{target}({randn(dtype, rng.choice([1, 3]), 5, 4)}{options})", {"x": randn(dtype, 2, 7, 3, 4)}


def _of_features(a: Arguments) -> str | None:
    x = a["x"]
    need(x.ndim >= 2 and x.shape[-1] == 4 and x.device.type == "cpu", "x: width or device")
    if x.ndim != 4 or x.shape[2] != 3:
        return "x: other heads, or another rank"
    return None if x.numel() else NOTHING


def _random_features(rng: random.Random) -> tuple[str, dict[str, str]]:
    target = rng.choice(["PositiveRandomFeatures", "TrigonometricRandomFeatures"])
    given = optional(rng, 0.5, normalize=pick(rng, [True, False]), scale=pick(rng, [None, 0.5, 1]))
    return f"ops.{target}", {"projection": randn("float32", 3, 5, 4), **given, **optional(rng, 0.3, eps="1e-6")}


def _of_random_features(a: Arguments) -> str | None:
    need(a["projection"].ndim == 3, "projection: rank")
    need(a.get("eps", 1e-12) >= 0, "eps: below 0")
    return None if a["projection"].numel() else NOTHING


def _denominator(rng: random.Random) -> tuple[str, dict[str, str]]:
    if rng.random() < 0.3:
        return "ops.Denominator", {"minimum": pick(rng, [1e-6, 0.0]), "keep_sign": pick(rng, [True, False])}
    return "ops.Denominator", optional(rng, 0.9, minimum=pick(rng, [1e-6, 100, 0.0]), eps=pick(rng, [0.0, 1e-6]))


def _of_denominator(a: Arguments) -> str | None:
    need(not a.get("keep_sign") or (a.get("minimum", 0.0) >= 0 and not a.get("eps")), "keep_sign: with others")
    # sums of signed features want a minimum of -inf
    return "eps: below 0" if a.get("eps", 0.0) < 0 or a.get("minimum", 0.0) < 0 else None


def _module(rng: random.Random) -> tuple[str, dict[str, str]]:
    return f"nn.{rng.choice(['LearnedFeatures', 'RandomFeatures'])}", {
        "key_dim": pick(rng, [2, 4]),
        **optional(rng, 0.5, num_features=pick(rng, [3, 6])),
    }


def _concentration(rng: random.Random) -> tuple[str, dict[str, str]]:
    return "nn.LocalConcentration", {"hidden_size": "6", **optional(rng, 0.5, kernel_size=pick(rng, [3, 5]))}


def _of_concentration(a: Arguments) -> str | None:
    need(a.get("kernel_size", 7) % 2 == 1, "kernel_size: even")
    return "hidden_size, kernel_size: very large" if max(a["hidden_size"], a.get("kernel_size", 7)) > 10**4 else None


def _position_bias(rng: random.Random) -> tuple[str, dict[str, str]]:
    return "nn.RelativePositionBias", {"num_heads": "3", "block_size": pick(rng, [2, 4])}


def _of_sizes(a: Arguments) -> str | None:
    large = any(isinstance(x, int) and x > 10**4 for x in a.values())
    return ", ".join(a) + ": very large" if large else None


def _bias(rng: random.Random) -> tuple[str, dict[str, str]]:
    return "nn.RelativePositionBias(3, 4)", {"height": pick(rng, [2, 4]), "width": pick(rng, [1, 3])}


def _of_bias(a: Arguments) -> str | None:
    need(max(a.values()) <= 4, "height, width, block_size: above the table")
    return None if min(a.values()) > 0 else "height, width: none"


def _nothing(a: Arguments) -> None:
    return None


HELPERS: dict[str, tuple[Callable[[random.Random], tuple[str, dict[str, str]]], dict[str, str], Rules]] = {
    "rotary_embedding": (_rotary, {"x": "*tensor:float", "positions": "*tensor:whole", "base": "float"}, _of_rotary),
    "grid_rotary_embedding": (
        _grid_rotary,
        {"x": "*tensor:float", "space": "*per_axis", "base": "float"},
        _of_grid_rotary,
    ),
    "token_positions": (
        _positions,
        {"tokens": "*int", "offset": "int", "first": "tensor?:whole", "cu_seqlens": "tensor?:integers"}
        | {"device": "*device"},
        _of_positions,
    ),
    "unpad": (_unpad, {"x": "*tensor", "attention_mask": "*tensor"}, _of_unpad),
    "pad": (
        _pad,
        {"packed": "*tensor", "index": "*tensor:integers", "batch_size": "*int", "length": "*int"},
        _of_pad,
    ),
    "features": (_features, {"x": "*tensor:float"}, _of_features),
    "random features": (
        _random_features,
        {"projection": "*tensor:float", "normalize": "bool", "scale": "float?", "eps": "float"},
        _of_random_features,
    ),
    "Denominator": (_denominator, {"minimum": "bound", "eps": "float", "keep_sign": "bool"}, _of_denominator),
    "feature modules": (_module, {"key_dim": "*int:1", "num_features": "int?:1", **PLACE}, _of_sizes),
    "LocalConcentration": (
        _concentration,
        {"hidden_size": "*int:1", "kernel_size": "int:1", **PLACE},
        _of_concentration,
    ),
    "RelativePositionBias": (_position_bias, {"num_heads": "*int:1", "block_size": "*int:1", **PLACE}, _of_sizes),
    "RelativePositionBias.forward": (_bias, {"height": "*int:0", "width": "*int:0"}, _of_bias),
    **MEASURES,
    **EDITS,
    **KNOWLEDGE,
}  # fmt: skip


def draw_helper(rng: random.Random) -> Call:
    """A legal call of one of them."""
    title = rng.choice(list(HELPERS))
    draw, kinds, rules = HELPERS[title]
    target, arguments = draw(rng)
    called = target.partition("(")[0].rpartition(".")[2]
    # what belongs to other functions of the same row is no argument here
    several = {"retrieval", "shares of ranks", "intervals", "TensorBrain"}
    known = {name: kind for name, kind in kinds.items() if title not in several or name in _accepted(target)}
    says = {
        "listed": "generate",
        "entered": "backend" if title == "backend" else "capture",
        "used": r"\w*Cache",
        "append": "TokenCache",
        "scores": r"\w+",
    }
    return Call(
        title=title if title not in several else called,
        target=target,
        arguments=arguments,
        kinds=known,
        rules=rules,
        says=(
            says.get(called, called),
            "TokenCache" if title == "TokenCache.append" else title,
            "models.create",
            "VisionTransformer",
            "find_sites",
        ),
        is_constructor=title[0].isupper() or title == "feature modules",
    )


def _accepted(target: str) -> set[str]:

    return set(inspect.signature(evaluate(target)).parameters)
