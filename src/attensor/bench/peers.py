"""Other people's implementations that happen to be installed, as functions with attensor's layout."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["fla_chunk_simple_gla", "natten_na2d"]


def fla_chunk_simple_gla() -> Callable[..., tuple[Tensor, Tensor | None]] | None:
    """fla's `naive_chunk_simple_gla(q, k, v, g)`, plain PyTorch with one decay per head and token; None when absent."""
    package = importlib.util.find_spec("fla")
    if package is None or not package.submodule_search_locations:
        return None
    # The file is loaded alone: importing the package of operators around it needs triton.
    path = Path(package.submodule_search_locations[0], "ops", "simple_gla", "naive.py")
    spec = importlib.util.spec_from_file_location("attensor_peer_simple_gla", path)
    if spec is None or spec.loader is None or not path.exists():
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., tuple[Tensor, Tensor | None]] = module.naive_chunk_simple_gla
    return function


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
