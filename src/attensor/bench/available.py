"""How much memory is left to take."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["available_bytes"]

_SYSTEM = Path("/proc/meminfo")
_CONTROL_GROUP = Path("/sys/fs/cgroup")


def available_bytes(device: str) -> int | None:
    """Bytes that can still be taken on `device`, a container's limit included; None when the system does not say."""
    if device == "cuda":
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # by this process, for its next tensors
        return torch.cuda.mem_get_info()[0] + kept
    found = [amount for amount in (_system_bytes(), _container_bytes()) if amount is not None]
    return min(found, default=None)


def _system_bytes() -> int | None:
    if not _SYSTEM.exists():
        return None
    for line in _SYSTEM.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _container_bytes() -> int | None:
    try:
        limit = (_CONTROL_GROUP / "memory.max").read_text().strip()
        used = int((_CONTROL_GROUP / "memory.current").read_text())
        kinds = dict(line.split() for line in (_CONTROL_GROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    # pages of files that nobody reads now count as used, but are given up when memory is asked for
    return int(limit) - used + int(kinds.get("inactive_file", 0)) if limit.isdigit() else None
