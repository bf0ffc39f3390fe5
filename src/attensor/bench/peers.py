"""Other people's neighbourhood attention, as a function with attensor's layout."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["natten_na2d"]


def natten_na2d() -> Callable[..., Tensor] | None:
    """NATTEN's `na2d(q, k, v, kernel_size=...)`, forward only on a CPU; None when absent."""
    if importlib.util.find_spec("natten") is None:
        return None
    natten = importlib.import_module("natten")

    def na2d(*tensors: Tensor, **options: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FlexAttention's advice to compile, which NATTEN itself forbids on a CPU
            out: Tensor = natten.na2d(*tensors, **options)
            return out

    return na2d
