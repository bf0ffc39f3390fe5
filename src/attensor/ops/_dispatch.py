"""Which implementation of an operator runs: by argument, by context, or the best that can.

    with attensor.backend("reference"):
        out = ops.linear_attention(q, k, v)

An operator is a table of implementations with one signature. The order of the table is the order of preference.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from attensor.errors import BackendError

__all__ = ["BACKENDS", "OPERATORS", "Operator", "backend"]

BACKENDS = ("triton", "cpp", "torch", "reference")

# "meta" computes shapes alone, which needs no GPU
_TRITON_DEVICES = ("cuda", "meta")

OPERATORS: dict[str, Operator] = {}


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # an import hook that refuses it
        return False


# Read once, so that torch.compile, which follows a choice, guards on two constants. Triton itself reads the variable
# when a kernel is defined.
_HAS_TRITON = _is_installed("triton")
_IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# A plain list, not a ContextVar: torch.compile can guard on it, so a compiled function follows the context.
_REQUESTED: list[str] = []


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Use one back-end for every operator called inside the block.

    Args:
        name: `"reference"` (the definition), `"torch"`, `"cpp"` (compiled on this machine, CPU) or `"triton"` (GPU).
    Raises:
        ValueError: unknown name.
        BackendError: raised by the first operator in the block that has no such back-end, with the reason.
    """
    _check_name(name)
    _REQUESTED.append(name)
    try:
        yield
    finally:
        _REQUESTED.pop()


class Operator:
    """A named operator and its implementations, all with the same signature.

    Args:
        name: the public function's name.
        implementations: back-end -> function.
    """

    def __init__(self, name: str, implementations: Mapping[str, Callable[..., Any]]) -> None:
        self.name = name
        self.implementations = dict(implementations)
        OPERATORS[name] = self

    def why_not(self, candidate: str, device: torch.device) -> str | None:
        """The reason why `candidate` cannot run on `device`, or None when it can."""
        if candidate not in self.implementations:
            return f"{self.name} has no {candidate} implementation"
        if candidate == "triton":
            if not _HAS_TRITON:
                return 'triton is not installed: pip install "attensor[triton]"'
            if device.type not in _TRITON_DEVICES and not (device.type == "cpu" and _IS_INTERPRETED):
                slowly = "; set TRITON_INTERPRET=1 before Python starts to interpret them, slowly, for tests"
                return f"triton kernels need a GPU, the tensors are on {device.type}{slowly * (device.type == 'cpu')}"
        if candidate == "cpp":
            if device.type != "cpu":
                return f"cpp kernels run on a CPU, the tensors are on {device.type}"
            return _why_not_cpp()
        return None

    def choose(self, requested: str | None, device: torch.device) -> Callable[..., Any]:
        """The implementation to run: the requested one, else the context's, else the best.

        Raises:
            BackendError: the requested one cannot run here.
        """
        if requested is None and _REQUESTED:
            requested = _REQUESTED[-1]
        if requested is not None:
            _check_name(requested)
            if self.why_not(requested, device) is None:
                return self.implementations[requested]
            raise BackendError(self._explain(requested, device))
        best = self.best(device)
        if best is None:
            raise BackendError(self._explain(None, device))
        return self.implementations[best]

    def best(self, device: torch.device) -> str | None:
        """The back-end taken when none is asked for, triton only on a GPU; None if no back-end can run."""
        for candidate in BACKENDS:
            if candidate == "triton" and device.type != "cuda":
                continue
            if self.why_not(candidate, device) is None:
                return candidate
        return None

    def _explain(self, requested: str | None, device: torch.device) -> str:
        reasons = "; ".join(f"{c}: {self.why_not(c, device) or 'available'}" for c in BACKENDS)
        asked = f"the back-end {requested!r} cannot run" if requested else "no back-end can run"
        return f"{self.name}: {asked} on {device.type} ({reasons}). Leave `backend` out to take the best available one."


def _why_not_cpp() -> str | None:
    # imported here: the kernels are built by the first operator that has some
    if torch.compiler.is_compiling():
        from attensor.ops.cpp.traced import why_not
    else:
        from attensor.ops.cpp.build import why_not
    return why_not()


def _check_name(name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"backend: unknown back-end {name!r}; choose one of {', '.join(map(repr, BACKENDS))}.")
