"""Which form operators with C++ kernels take in this process."""

from __future__ import annotations

from typing import Literal

from attensor.ops._native.build import why_not

__all__ = ["kernels_form"]


def kernels_form() -> Literal["cpp", "torch"]:
    """`"cpp"` where this process takes the C++ kernels on a CPU, else `"torch"`; the same at every call."""
    return "torch" if why_not() else "cpp"
