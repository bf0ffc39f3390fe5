"""timm as a peer, also without torchvision: stand-in modules while timm is being imported.

timm needs torchvision for transforms and data sets, none of which a comparison of models touches, and the wheels of
torchvision do not fit every build of torch. The stand-ins go again at once: others would take them for the real thing.
"""

from __future__ import annotations

import enum
import sys
from types import ModuleType
from typing import Any

import torch
from torch import nn

from attensor.bench.contestants.packages import load

__all__ = ["load_timm", "randomise"]

_NAMES = ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".datasets")
_Mode = enum.Enum("_Mode", ["NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS"])


class _StandIn(ModuleType):
    """A module in which every public name is a class that cannot be used."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": _refuse})


def _refuse(self: object, *args: object, **options: object) -> None:
    raise RuntimeError(f"{type(self).__name__} of torchvision is a stand-in here: install torchvision to use it.")


def load_timm() -> Any:
    """timm.

    Raises:
        LeftOut: it is not installed, or cannot be imported.
    """
    if "timm" in sys.modules or "torchvision" in sys.modules:  # somebody has one that works
        return load("timm", "timm", device="any")
    modules: dict[str, Any] = {f"torchvision{name}": _StandIn(f"torchvision{name}") for name in _NAMES}
    for name, module in modules.items():
        module.__path__ = []
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    modules["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})
    modules["torchvision.transforms.functional"].InterpolationMode = _Mode
    sys.modules.update(modules)
    try:
        return load("timm", "timm", device="any")
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
