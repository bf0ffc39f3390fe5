"""Weights and inputs that depend on a name alone: the same on every machine and in every version of torch."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["fingerprint", "golden", "listing", "summaries", "uniform", "weighed", "weights"]

HERE = Path(__file__).parent
_LOW = 0xFFFFFFFF  # products wrap in int64, which keeps their lower 32 bits


def uniform(name: str, *shape: int) -> Tensor:
    """Numbers from -1 to 1, float64: 32 bits mixed from the name and the place."""
    bits = (torch.arange(math.prod(shape)) * 0x9E3779B1 + zlib.crc32(name.encode())) & _LOW
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = ((bits ^ (bits >> shift)) * factor) & _LOW
    return ((bits ^ (bits >> 16)).double() / 2**31 - 1).view(shape)


def weights(shapes: Mapping[str, Iterable[int]]) -> dict[str, Tensor]:
    """A state_dict in which nothing is zero, one or small: kernels by what they sum over, factors around 1."""
    return {name: _drawn(name, *shape) for name, shape in shapes.items()}


def _drawn(name: str, *shape: int) -> Tensor:
    kind, x = name.rpartition(".")[2], uniform(name, *shape)
    if kind == "num_batches_tracked":
        return torch.tensor(3)
    if kind.startswith("gamma") or kind == "running_var" or (kind == "weight" and len(shape) == 1):
        return 1 + x / 2
    return x * (3 / math.prod(shape[1:])) ** 0.5 if len(shape) > 1 else x / 3


def weighed(out: Tensor) -> Tensor:
    """A loss in which no two outputs count the same."""
    return (out * uniform("loss", *out.shape)).sum()


def summaries(gradients: Mapping[str, Tensor]) -> Tensor:
    """One number for each gradient, in the order of the names; a transposed one has another."""
    return torch.stack([(gradients[name] * uniform(name, *gradients[name].shape)).sum() for name in sorted(gradients)])


def fingerprint(shapes: Mapping[str, Iterable[int]]) -> int:
    """Of all names and shapes."""
    return zlib.crc32("\n".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())).encode())


def golden(sheet: str) -> dict[str, Tensor]:
    """The numbers of a sheet."""
    return load_file(HERE / f"{sheet}.safetensors")


def listing(sheet: str) -> dict[str, dict[str, Any]]:
    """What its published models have: names and shapes as a fingerprint, tensors and parameters as counts."""
    found: dict[str, dict[str, Any]] = json.loads((HERE / f"{sheet}.json").read_text("utf-8"))
    return found
