"""The machine a measurement is taken on, and the matrix product that is its yardstick."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["describe", "matrix_product", "processor", "torch_threads", "version_of"]


def matrix_product(
    size: int = 1024, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Callable[[], Tensor]:
    """A call that multiplies two square matrices: the yardstick, to be timed beside the contestants."""
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    return lambda: a @ b


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads for PyTorch inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def processor() -> str:
    """The processor's name as the system gives it."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    """Version of an installed distribution, None when it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe(*packages: str, device: str = "cpu") -> dict[str, str]:
    """What belongs beside every measurement: date, processor, cores, threads, versions of `packages`, and the GPU."""
    facts = {
        "date": date.today().isoformat(),
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
    }
    facts |= {package: version_of(package) or "not installed" for package in ("attensor", "torch", *packages)}
    return facts | ({"device": torch.cuda.get_device_name()} if device == "cuda" else {})
