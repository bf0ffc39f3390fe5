"""Functions of the C++ library, and tensors as they take them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from attensor.ops._native.build import library

__all__ = ["STORAGE", "TensorView", "kernel", "readable"]

# dtypes that C++ reads and writes, by the numbers of `Storage` in memory.h
STORAGE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}


class TensorView(ctypes.Structure):
    """`Tensor` of memory.h: a pointer and strides; who makes one keeps the tensor alive."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("token", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("storage", ctypes.c_int32),
    )

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """Of x [B, T, H, ..] as `readable` gives it."""
        return cls(x.data_ptr(), *x.stride()[:3], STORAGE[x.dtype])


def readable(x: Tensor) -> Tensor:
    """x in a dtype that C++ reads, with a contiguous last dimension and its own signs; itself if it is so already."""
    if x.dtype not in STORAGE:
        x = x.float()
    x = x.resolve_neg() if x.is_neg() else x
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


@functools.cache
def kernel(name: str, dtype: torch.dtype) -> Callable[..., int]:
    """The C++ function `name` for one working precision; its first argument is `byref` of its `argument_of`.

    Raises:
        BackendError: there is no library.
    """
    found: Any = getattr(library(), f"attensor_{name}_{'double' if dtype == torch.float64 else 'float'}")
    return found  # type: ignore[no-any-return]
