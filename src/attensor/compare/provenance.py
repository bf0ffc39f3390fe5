"""Where results come from: versions, machine, kernels and data, so that somebody else can find out what differs."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import attensor
from attensor.compare.plan import Plan

__all__ = ["machine", "provenance"]

_PACKAGES = ("attensor", "torch", "numpy", "safetensors", "pillow", "scikit-learn")


def provenance(plan: Plan) -> dict[str, Any]:
    """The `provenance` part of results.json; what cannot be found out is null."""
    return {
        "git_commit": _git_commit(Path(attensor.__file__).parent),
        "python": platform.python_version(),
        "system": platform.platform(),
        "compiler": _compiler(),
        "packages": _packages(),
        "backends": _backends(plan),
        "data_sha256": plan.facts.get("fingerprint") or None,
        "load_at_start": plan.load_at_start,
    }


def machine(plan: Plan) -> dict[str, Any]:
    """The `machine` part of results.json."""
    import torch

    from attensor.bench import processor

    return {
        "processor": torch.cuda.get_device_name() if plan.device == "cuda" else processor(),
        "cores": os.cpu_count() or 1,
        "threads": plan.threads,
        "device": plan.device,
        "dtype": plan.dtype,
    }


@functools.cache
def _git_commit(folder: Path) -> str | None:
    """That of the checkout which attensor runs from, with `+` for changed files; None where it is installed."""
    # a repository that merely contains the environment says nothing of attensor
    if "site-packages" in folder.parts:
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + "+" * bool(_git(folder, "status", "--porcelain", "--untracked-files=no", "--", "."))
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


@functools.cache
def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"attensor": attensor.__version__}


@functools.cache
def _compiler() -> str | None:
    """The first line of what the compiler of the kernels says of itself."""
    from attensor.ops._native.compiler import compiler, version

    command = compiler()
    said = version(tuple(command)) if command else None
    return said.partition("\n")[0] if said else None


def _backends(plan: Plan) -> dict[str, str]:
    """Of each operator the form that it takes in the processes of the run."""
    import torch

    from attensor.ops import OPERATORS

    preferred = attensor.backend("torch") if plan.kernels == "torch" else contextlib.nullcontext()
    with preferred:
        device = torch.device(plan.device)
        return {name: operator.best(device) or "none" for name, operator in sorted(OPERATORS.items())}
