"""Working precision, and where autocast must not reach."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["FLOATS", "WORKING", "common_dtype", "full_precision", "working_dtype"]


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Autocast off on the device of `like`: products of statistics and states stay in the working dtype."""
    device = like.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """What sums, statistics and states of these tensors are kept in: float32, or float64 if one of them is."""
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def common_dtype(first: Tensor, *others: Tensor) -> torch.dtype:
    """Of tensors that autocast let be of several dtypes: what torch promotes them to."""
    dtype = first.dtype
    for x in others:
        dtype = dtype if x.dtype == dtype else torch.promote_types(dtype, x.dtype)
    return dtype


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# the same for tensors of two dtypes: a look-up where a call takes microseconds
WORKING = {(a, b): torch.float64 if torch.float64 in (a, b) else torch.float32 for a in FLOATS for b in FLOATS}
