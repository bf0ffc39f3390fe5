"""timm without torchvision, whose wheels for this torch need CUDA: stand-in modules while timm is being imported.

timm needs torchvision for transforms and datasets, none of which a numerical comparison touches. The stand-ins go again
at once: transformers would take them for the real thing.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

_NAMES = ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".datasets")


class _StandIn(ModuleType):
    """A module in which every public name is a class that cannot be used."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": _refuse})


def _refuse(self: object, *args: object, **options: object) -> None:
    raise RuntimeError(f"{type(self).__name__} of torchvision is a stand-in in these tests.")


def load_timm() -> ModuleType:
    """timm, or skip the calling tests with its name."""
    if "timm" in sys.modules:
        return sys.modules["timm"]
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm: pip install --no-deps timm==1.0.31", allow_module_level=True)
    if "torchvision" in sys.modules:  # somebody has one that works
        return importlib.import_module("timm")
    modules = {f"torchvision{name}": _StandIn(f"torchvision{name}") for name in _NAMES}
    for name, module in modules.items():
        module.__path__ = []
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    modules["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})
    modes = ("NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")
    modules["torchvision.transforms.functional"].InterpolationMode = enum.Enum("InterpolationMode", modes)
    sys.modules.update(modules)
    try:
        return importlib.import_module("timm")
    finally:
        for name in modules:
            del sys.modules[name]


def randomise(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Add noise to every parameter: zeros and ones hide what is wrong."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.02 * noise.to(parameter))
    return model
