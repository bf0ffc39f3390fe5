"""Which implementation of an operator runs: by argument, by context, or the best that can.

    with attensor.backend("reference"):
        out = ops.linear_attention(q, k, v)

An operator is a table of implementations with one signature. The order of the table is the order of preference.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from attensor.errors import BackendError

__all__ = ["BACKENDS", "OPERATORS", "Operator", "backend"]

BACKENDS = ("triton", "torch", "reference")

OPERATORS: dict[str, Operator] = {}

# A plain list, not a ContextVar: torch.compile can guard on it, so a compiled function follows the context.
_REQUESTED: list[str] = []


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Use one back-end for every operator called inside the block.

    Args:
        name: `"reference"` (the definition), `"torch"` or `"triton"`.
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
            if importlib.util.find_spec("triton") is None:
                return 'triton is not installed: pip install "attensor[triton]"'
            if device.type != "cuda":
                return f"triton kernels need a GPU, the tensors are on {device.type}"
        return None

    def choose(self, requested: str | None, device: torch.device) -> Callable[..., Any]:
        """The implementation to run: the requested one, else the context's, else the first that can.

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
        for candidate in BACKENDS:
            if self.why_not(candidate, device) is None:
                return self.implementations[candidate]
        raise BackendError(self._explain(None, device))

    def _explain(self, requested: str | None, device: torch.device) -> str:
        reasons = "; ".join(f"{c}: {self.why_not(c, device) or 'available'}" for c in BACKENDS)
        asked = f"the back-end {requested!r} cannot run" if requested else "no back-end can run"
        return f"{self.name}: {asked} on {device.type} ({reasons}). Leave `backend` out to take the best available one."


def _check_name(name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"backend: unknown back-end {name!r}; choose one of {', '.join(map(repr, BACKENDS))}.")
