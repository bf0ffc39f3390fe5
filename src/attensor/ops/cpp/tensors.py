"""Tensors as the C++ kernels take them."""

from __future__ import annotations

import ctypes
from typing import Self

import torch
from torch import Tensor

__all__ = ["STORAGE", "TensorView", "readable"]

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
    """x in a dtype that C++ reads and with a contiguous last dimension; itself if it is so already."""
    if x.dtype not in STORAGE:
        x = x.float()
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
