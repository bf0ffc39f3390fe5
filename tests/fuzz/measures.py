"""Measures of rankings and means, caches by hand, whole models and generation: legal calls, and their rules."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

from attensor import models
from tests.fuzz.calls import Rules, need, optional, pick, randn
from tests.fuzz.operator_rules import NOTHING, same_device, shape

__all__ = ["MEASURES"]

Arguments = dict[str, Any]
PLACE = {"device": "device?", "dtype": "dtype?"}


def _scores(rng: random.Random, name: str, masks: str) -> dict[str, str]:
    dtype = rng.choice(["float32", "float64", "float16"])
    given = {"scores": randn(dtype, 4, 6)}
    given |= {"target": "torch.randint(6, (4,))"} if name == "ranks" else {"relevant": masks}
    return {**given, **optional(rng, 0.4, filter="torch.rand(4, 6) > 0.8")}


def _ranks(rng: random.Random) -> tuple[str, dict[str, str]]:
    name = rng.choice(["ranks", "first_ranks", "average_precision", "mean_average_precision"])
    given = _scores(rng, name, "torch.rand(4, 6) > 0.6")
    if name in ("ranks", "first_ranks"):
        given |= optional(rng, 0.4, ties=pick(rng, ["mean", "optimistic", "pessimistic"]))
    if name != "mean_average_precision":
        given |= optional(rng, 0.3, chunk_size=pick(rng, [1, 3, 100]))
    return f"retrieval.{name}", given


def _of_ranks(a: Arguments) -> str | None:
    scores = a["scores"]
    need(scores.ndim == 2, "scores: rank")
    same_device(a, scores, "target", "relevant", "filter")
    for mask in ("relevant", "filter"):
        shape(a, mask, list(scores.shape))
    if scores.device.type == "meta":
        return "scores: meta"
    need(not scores.isnan().any(), "scores: not a number")
    shape(a, "target", [scores.shape[0]])
    if "target" in a:
        inside = (a["target"] >= 0) & (a["target"] < scores.shape[1])
        need(bool(inside.all()), "target: outside")
        if a["target"].dtype != torch.int64:
            return "target: other integers"
    need(a.get("chunk_size", 1) >= 1, "chunk_size: below 1")
    return None if scores.numel() else NOTHING


def _shares(rng: random.Random) -> tuple[str, dict[str, str]]:
    ranks = "torch.tensor([1.0, 3.0, 2.5, inf]).double()"
    name, most = rng.choice([("cumulative_matches", "most"), ("hits_at", "k"), ("mean_reciprocal_rank", "")])
    return f"retrieval.{name}", {"ranks": ranks, **({most: "3"} if most else {})}


def _of_shares(a: Arguments) -> str | None:
    need(a["ranks"].ndim == 1, "ranks: rank")
    if a["ranks"].dtype in (torch.int32, torch.int64):
        return "ranks: whole numbers"
    most = a.get("most", a.get("k", 1))
    need(most >= 0, "most, k: below 0")
    if a["ranks"].device.type == "meta" or most > 10**6 or most == 0 or bool(a["ranks"].isnan().any()):
        return "ranks, most, k: odd"
    return "ranks: below 1" if bool((a["ranks"] < 1).any()) or not a["ranks"].numel() else None


def _intervals(rng: random.Random) -> tuple[str, dict[str, str]]:
    name = rng.choice(["t_interval", "bootstrap_interval", "sign_flip_test"])
    given = {"differences" if name == "sign_flip_test" else "values": "[0.5, 1.5, 0.25, 2.0]"}
    if name == "sign_flip_test":
        choice = pick(rng, ["two-sided", "greater", "less"])
        return f"intervals.{name}", {**given, **optional(rng, 0.5, alternative=choice, samples="100")}
    given |= optional(rng, 0.5, confidence=pick(rng, [0.9, 0.5]))
    return f"intervals.{name}", given | (optional(rng, 0.8, resamples="50", seed="1") if name[0] == "b" else {})


def _of_intervals(a: Arguments) -> str | None:
    values = a.get("values", a.get("differences"))
    need(len(values), "values: none")
    need(0 < a.get("confidence", 0.95) < 1, "confidence: range")
    for name in ("resamples", "samples"):
        need(a.get(name, 1) >= 1, f"{name}: below 1")
    if a.get("resamples", 1) > 10**5 or a.get("samples", 1) > 10**5 or abs(a.get("seed", 0)) >= 2**63:
        return "resamples, samples, seed: very large"
    return None


def _token_cache(rng: random.Random) -> tuple[str, dict[str, str]]:
    cache = rng.choice(["nn.TokenCache(2, {'k': (3, 4)})", "nn.TokenCache(2, {'k': (3, 4)}, windows=3, max_length=2)"])
    return f"{cache}.append", {"k": randn("float32", 2, rng.choice([1, 5]), 3, 4)}


def _of_token_cache(a: Arguments) -> str | None:
    shape(a, "k", [2, *a["k"].shape[1:2], 3, 4])
    need(a["k"].device.type == "cpu", "k: device")
    return "k: whole numbers" if not a["k"].is_floating_point() else None if a["k"].numel() else NOTHING


def _crop(rng: random.Random) -> tuple[str, dict[str, str]]:
    layer = rng.choice(["nn.SoftmaxAttention(12, 3)", "nn.RelativeKernelAttention(12, 3)"])
    return f"used({layer}, 2, 4).crop", {"length": pick(rng, [0, 2, 4])}


def _of_crop(a: Arguments) -> str | None:
    need(a["length"] <= 4, "length: more than there are")
    return None


def _backend(rng: random.Random) -> tuple[str, dict[str, str]]:
    return "entered(ops.backend)", {"name": pick(rng, ["reference", "torch", "cpp", "triton"])}


def _create(rng: random.Random) -> tuple[str, dict[str, str]]:
    return "models.create", {
        "name": "'vit_tiny_patch16_224'",
        "device": "'meta'",
        **optional(rng, 0.4, num_classes=pick(rng, [0, 10])),
        **optional(rng, 0.4, img_size=pick(rng, [32, (32, 64)])),
        **optional(rng, 0.3, features_only="True", out_indices=pick(rng, [None, 2, [1, 3]])),
    }


def _of_create(a: Arguments) -> str | None:
    need(a["name"] in models.model_names(), "name: unknown")
    need(
        "vit" in a["name"] or "rala" in a["name"] or not a.get("features_only", False), "features_only: no image model"
    )
    need(a.get("num_classes") is None or a["num_classes"] >= 0, "num_classes: below 0")
    size = a.get("img_size")
    if isinstance(size, (tuple, list)):
        need(len(size) == 2, "img_size: two sides")
    sides = [] if size is None else list(size) if isinstance(size, (tuple, list)) else [size]
    need(all(side >= 1 for side in sides), "img_size: below 1")
    need(a.get("features_only", False) or a.get("out_indices") is None, "out_indices: of features_only")
    indices = a.get("out_indices")
    if indices is not None:
        several = indices if isinstance(indices, (list, tuple)) else [indices]
        need(all(isinstance(n, int) and -12 <= n < 12 for n in several), "out_indices: outside")
        need(not isinstance(indices, int) or indices > 0, "out_indices: how many of the last")
        need(bool(several), "out_indices: no maps")
    rest = [a.get("num_classes") or 0, *sides]
    return "img_size, num_classes, name: another model" if max(rest) > 64 or any(s % 16 for s in sides) else None


_DECODER = (
    "listed(lambda **options: language.generate(language.Decoder(language.DecoderConfig(11, 12, 1, 3, 8), "
    "lambda index: nn.{}(12, 3)), **options))"
)


def _generate(rng: random.Random) -> tuple[str, dict[str, str]]:
    return _DECODER.format(rng.choice(["SoftmaxAttention", "GatedLinearAttention"])), {
        "tokens": f"torch.randint(11, (2, {rng.choice([1, 4])}))",
        "max_new_tokens": pick(rng, [0, 1, 3]),
        **optional(rng, 0.5, temperature=pick(rng, [0, 0.7, 1.0])),
        **optional(rng, 0.4, top_k=pick(rng, [None, 1, 5, 100])),
        **optional(rng, 0.4, top_p=pick(rng, [None, 0.1, 1.0])),
        **optional(rng, 0.3, generator="torch.Generator()"),
    }


def _of_generate(a: Arguments) -> str | None:
    tokens = a["tokens"]
    need(tokens.ndim == 2 and tokens.shape[1] >= 1, "tokens: shape")
    need(tokens.device.type == "cpu", "tokens: device")
    need(not tokens.numel() or (int(tokens.min()) >= 0 and int(tokens.max()) < 11), "tokens: outside the vocabulary")
    need(a.get("temperature", 1.0) >= 0, "temperature: negative")
    need(a.get("top_k") is None or a["top_k"] >= 1, "top_k: below 1")
    need(a.get("top_p") is None or 0 < a["top_p"] <= 1, "top_p: range")
    if a["max_new_tokens"] > 100:
        return "max_new_tokens: very many"
    return "temperature: tiny or tokens: none" if 0 < a.get("temperature", 1.0) < 1e-20 or not len(tokens) else None


def _nothing(a: Arguments) -> None:
    return None


SCORES = {"scores": "*tensor:float", "filter": "tensor?:bool", "chunk_size": "int"}
MEASURES: dict[str, tuple[Callable[[random.Random], tuple[str, dict[str, str]]], dict[str, str], Rules]] = {
    "retrieval": (
        _ranks,
        {**SCORES, "target": "tensor:whole", "relevant": "tensor:bool", "ties": "choice:mean|optimistic|pessimistic"},
        _of_ranks,
    ),
    "shares of ranks": (_shares, {"ranks": "*tensor:numbers", "most": "count", "k": "int"}, _of_shares),
    "intervals": (
        _intervals,
        {"values": "numbers", "differences": "numbers", "confidence": "float", "resamples": "count", "samples": "count"}
        | {"seed": "int", "alternative": "choice:two-sided|greater|less"},
        _of_intervals,
    ),
    "TokenCache.append": (_token_cache, {"k": "*tensor"}, _of_token_cache),
    "Cache.crop": (_crop, {"length": "*int:0"}, _of_crop),
    "backend": (_backend, {"name": "*choice:reference|torch|cpp|triton"}, _nothing),
    "models.create": (
        _create,
        {"name": "*text", "num_classes": "int?", "img_size": "per_axis?", "features_only": "bool"}
        | {"out_indices": "per_axis?", **PLACE},
        _of_create,
    ),
    "generate": (
        _generate,
        {"tokens": "*tensor:integers", "max_new_tokens": "*count:0", "temperature": "float", "top_k": "int?"}
        | {"top_p": "float?", "generator": "instance?:Generator"},
        _of_generate,
    ),
}
