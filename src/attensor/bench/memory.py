"""Extra memory at the peak of a call: resident pages, whoever took them, or exactly the tensors."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["keep_freed_memory", "measure_peak_bytes", "measure_tensor_bytes", "return_freed_memory"]

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
    return_freed_memory()  # or the call would reuse those pages and seem to need nothing
    before = _mark_start()
    call()
    return max(0, _mark() - before)


def measure_tensor_bytes(call: Callable[[], Any], *, device: torch.device | str = "cpu") -> int:
    """Bytes that PyTorch's allocator has handed out at the worst moment of `call`, beyond what it had before.

    The same figure at every repetition, to the byte, and the same question on a CPU as on a GPU. What does not come
    from that allocator is not seen: code and tables that a first call loads, scratch memory of BLAS and of C++ kernels,
    arrays of numpy; nor what further threads of an operator take. `measure_peak_bytes` sees them, and its figure
    varies by some megabytes.

    Args:
        call: function of no arguments; its result is dropped.
        device: where it allocates.
    """
    device = torch.device(device)
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()  # when it runs depends on what ran before, and it would end the life of tensors in cycles
    try:
        return _cuda_peak(call, device) if device.type == "cuda" else _highest_sum(_allocations(call))
    finally:
        if was_enabled:
            gc.enable()


def _allocations(call: Callable[[], Any]) -> list[tuple[int, int]]:
    """(address, bytes) of what was allocated and, below 0, freed, in order."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells every start and end on the standard error
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        trace = json.loads(path.read_bytes())
    events = sorted(
        (event for event in trace["traceEvents"] if event.get("name") == "[memory]"), key=lambda event: event["ts"]
    )
    return [(event["args"]["Addr"], event["args"]["Bytes"]) for event in events]


def _highest_sum(allocations: list[tuple[int, int]]) -> int:
    held: dict[int, int] = {}
    now = highest = 0
    for address, size in allocations:
        if size > 0:
            held[address] = size
            now += size
            highest = max(highest, now)
        else:
            now -= held.pop(address, 0)  # what was there before the call is not the call's
    return highest


# of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let the allocator of this process keep what is freed, as a GPU's does.

    Otherwise glibc gives large blocks back to the system, which clears every page again at the next call: beyond some
    megabytes a call suddenly takes up to twice as long, an effect of the length that is not the mechanism's. Does
    nothing where there is no glibc.
    """
    mallopt = _libc_function("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Give freed pages back to the system now; does nothing where there is no glibc."""
    trim = _libc_function("malloc_trim")
    if trim is not None:
        trim(0)


def _libc_function(name: str) -> Any:
    """A function of glibc, or None: musl has neither of them."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _cuda_peak(call: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


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
