"""Edits and readings of models, measures of classifiers, descriptions of positions: legal calls, and their rules."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

from tests.fuzz.calls import Rules, need, optional, pick, randn

__all__ = ["EDITS"]

Arguments = dict[str, Any]
MODEL = "torch.nn.Sequential(nn.SoftmaxAttention(12, 3), nn.SoftmaxAttention(12, 3))"
NAMES = ("hidden_states", "q", "k", "v", "weights", "out", "result")


def _rotation(rng: random.Random) -> tuple[str, dict[str, str]]:
    how = rng.choice(["identity", "hadamard", "pca"])
    moment = {"moment": "torch.eye(4).double()"} if how == "pca" else {}
    return "edit.rotation", {"how": repr(how), "rank": "4", **moment, **optional(rng, 0.4, seed=pick(rng, [0, 7]))}


def _of_rotation(a: Arguments) -> str | None:
    how, rank, moment = a["how"], a["rank"], a.get("moment")
    need(rank < 2**14, "rank: at most")
    need(how != "hadamard" or rank & (rank - 1) == 0, "rank: no power of two")
    if how != "pca":
        return "moment, seed, rank: unread or large" if moment is not None or rank > 64 or a.get("seed") else None
    need(moment is not None and list(moment.shape) == [rank, rank], "moment, rank: sizes")
    need(not moment.is_meta and bool(moment.isfinite().all()), "moment: not finite")
    return "moment: not symmetric" if not torch.equal(moment, moment.mT) else None


def _swap(rng: random.Random) -> tuple[str, dict[str, str]]:
    return "edit.swap", {
        "model": MODEL,
        "to": pick(rng, ["gla", "sliding-window", "linear"]),
        **optional(rng, 0.5, layers=pick(rng, [[0], [-1, 0], (1,)])),
        **optional(rng, 0.4, weights=pick(rng, ["carry", "fresh"])),
    }


def _of_swap(a: Arguments) -> str | None:
    need(isinstance(a["model"], torch.nn.Sequential), "model: without attention")
    _layers(a)
    return None if a["to"] in ("gla", "sliding-window", "linear") else "to: another"


def _layers(a: Arguments) -> None:
    layers = a.get("layers")
    need(layers is None or isinstance(layers, (list, tuple)), "layers: no sequence")
    for n in layers or ():
        need(isinstance(n, int) and not isinstance(n, bool) and -2 <= n < 2, "layers: none of the two")
    need(layers is None or len(layers), "layers: none")


def _restore(rng: random.Random) -> tuple[str, dict[str, str]]:
    return "edit.restore", {
        "model": f"edit.swap({MODEL}, 'gla')",
        **optional(rng, 0.5, layers=pick(rng, [[0], [-1, 0]])),
        **optional(rng, 0.4, weights=pick(rng, ["carry", "original"])),
    }


def _of_restore(a: Arguments) -> str | None:
    need(isinstance(a["model"], torch.nn.Sequential), "model: without attention")
    _layers(a)
    return None


def _capture(rng: random.Random) -> tuple[str, dict[str, str]]:
    wanted = [rng.choice(NAMES[:4]), *rng.sample(NAMES[4:], 1)]
    return "entered(sites.capture)", {"sites": f"sites.find_sites({MODEL})", "wanted": repr(wanted)}


def _of_capture(a: Arguments) -> str | None:
    wanted = a.get("wanted", ())
    need(isinstance(a["sites"], (list, tuple)), "sites: no sequence")
    for site in a["sites"]:
        need(type(site).__name__.endswith("Site"), "sites: no site")
    need(hasattr(wanted, "__iter__"), "wanted: not names")
    if isinstance(wanted, torch.Tensor):
        return "wanted: a tensor"
    for name in wanted:
        need(isinstance(name, str) and name in NAMES, "wanted: unknown")
    return None


def _indicators(rng: random.Random) -> tuple[str, dict[str, str]]:
    return "indicators", {"attention": f"{randn(rng.choice(['float32', 'float16']), 2, 3, 5, 5)}.softmax(-1)"}


def _of_indicators(a: Arguments) -> str | None:
    x = a["attention"]
    need(x.ndim >= 3 and x.shape[-1] == x.shape[-2] and 0 not in x.shape[-3:], "attention: no squares")
    return None


def _hits(rng: random.Random) -> tuple[str, dict[str, str]]:
    return "top_hits", {
        "logits": randn("float32", 4, 6),
        "labels": "torch.tensor([0, 5, 2, 2])",
        **optional(rng, 0.5, counts=pick(rng, [(1, 5), [1], (2, 100)])),
    }


def _of_hits(a: Arguments) -> str | None:
    logits, labels = a["logits"], a["labels"]
    need(logits.ndim == 2 and list(labels.shape) == [logits.shape[0]], "labels, logits: sizes")
    need(logits.device == labels.device, "labels, logits: devices")
    counts = a.get("counts", (1, 5))
    need(isinstance(counts, (list, tuple)), "counts: no sequence")
    for n in counts:
        need(isinstance(n, int) and not isinstance(n, bool), "counts: no numbers")
    if any(abs(n) >= 2**63 for n in counts):
        return "counts: beyond 64 bits"
    if labels.is_meta or not labels.numel() or not counts:
        return "labels, counts: none"
    need(bool(((labels >= 0) & (labels < logits.shape[1])).all()), "labels: of no class")
    return None


def _yarn(rng: random.Random) -> tuple[str, dict[str, str]]:
    return "nn.Yarn", {"factor": "4.0", "original_length": "64", **optional(rng, 0.5, base="100.0", beta_fast="16")}


def _of_yarn(a: Arguments) -> str | None:
    need(a["factor"] > 0 and a["original_length"] > 0, "factor, original_length: not positive")
    need(a.get("base", 1e4) > 1, "base: at most 1")
    need(a.get("beta_slow", 1.0) > 0, "beta_slow: not positive")
    need(a.get("beta_fast", 32.0) >= a.get("beta_slow", 1.0), "beta_fast, beta_slow: order")
    return None


def _slicing(rng: random.Random) -> tuple[str, dict[str, str]]:
    return "nn.Slicing", {"groups": "2", **optional(rng, 0.6, norms="(2.0, 2.0)", when=pick(rng, ["decode", "always"]))}


def _of_slicing(a: Arguments) -> str | None:
    for name in ("norms", "gains"):
        numbers = a.get(name)
        if numbers is not None:
            need(len(numbers) == a.get("groups", 2), f"{name}, groups: one for each")
    return None


def _config(rng: random.Random) -> tuple[str, dict[str, str]]:
    sizes = dict(zip(("vocab_size", "hidden_size", "num_layers", "num_heads", "mlp_hidden_size"), "96132"))
    return "language.DecoderConfig", {**sizes, **optional(rng, 0.5, tie_embeddings=pick(rng, [True, False]))}


def _of_config(a: Arguments) -> str | None:
    return "sizes: seen when a model is made"


EDITS: dict[str, tuple[Callable[[random.Random], tuple[str, dict[str, str]]], dict[str, str], Rules]] = {
    "rotation": (
        _rotation,
        {"how": "*choice:identity|hadamard|pca", "rank": "*int:1", "moment": "tensor?:float", "seed": "int"},
        _of_rotation,
    ),
    "swap": (
        _swap,
        {"model": "*instance:Sequential", "to": "*text", "layers": "anything?", "weights": "choice:carry|fresh"},
        _of_swap,
    ),
    "restore": (
        _restore,
        {"model": "*instance:Sequential", "layers": "anything?", "weights": "choice:carry|original"},
        _of_restore,
    ),
    "capture": (_capture, {"sites": "*anything", "wanted": "anything"}, _of_capture),
    "indicators": (_indicators, {"attention": "*tensor:float"}, _of_indicators),
    "top_hits": (
        _hits,
        {"logits": "*tensor:float", "labels": "*tensor:integers", "counts": "anything"},
        _of_hits,
    ),
    "Yarn": (
        _yarn,
        {"factor": "*float", "original_length": "*int", "mscale": "float", "mscale_all_dim": "float"}
        | dict.fromkeys(("base", "beta_fast", "beta_slow"), "float"),
        _of_yarn,
    ),
    "Slicing": (
        _slicing,
        {
            "groups": "int:1",
            "norms": "numbers?",
            "gains": "numbers?",
            "softmax": "bool",
            "when": "choice:decode|always",
        },
        _of_slicing,
    ),
    "DecoderConfig": (
        _config,
        dict.fromkeys(("vocab_size", "hidden_size", "num_layers", "num_heads", "mlp_hidden_size"), "*int")
        | {"tie_embeddings": "bool", "norm_eps": "float"},
        _of_config,
    ),
}
