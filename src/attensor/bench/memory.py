"""Extra memory at the peak of a call."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["measure_peak_bytes"]

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def measure_peak_bytes(call: Callable[[], Any], *, device: torch.device | str = "cpu") -> int:
    """Bytes that `call` holds at its worst moment beyond what was held before it.

    On a CPU the unit of account is the resident page, so buffers below some hundred kilobytes drown in the noise of
    the allocator. Linux can reset its high-water mark (`/proc/self/clear_refs`); elsewhere the mark only ever
    rises, and a call that stays below an earlier peak of the process measures 0.

    Args:
        call: function of no arguments; its result is dropped.
        device: where it allocates; on a GPU PyTorch's own count is taken.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        return _cuda_peak(call, torch.device(device))
    _return_freed_pages()
    before = _mark_start()
    call()
    return max(0, _mark() - before)


def _cuda_peak(call: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _return_freed_pages() -> None:
    """Give freed pages back, or the call would reuse them and seem to need nothing."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)


def _mark_start() -> int:
    try:
        _RESET.write_text("5")
    except OSError:
        return _mark()
    return _status_bytes("VmRSS")


def _mark() -> int:
    if _STATUS.exists():
        return _status_bytes("VmHWM")
    import resource  # not on Windows, and not needed where /proc is

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0
