"""Operators: one problem, several implementations, and which of them runs.

    with attensor.backend("reference"):
        out = ops.linear_attention(q, k, v)

A problem is a frozen dataclass of an operator's checked arguments; an implementation takes it whole and can say, before
anything is computed, why it cannot. An argument `backend=` is a demand, refused with that reason; the context is a
preference, and falls back to the best one that can. Choosing compiles nothing.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

import torch

from attensor.errors import BackendError
from attensor.ops._native import build

__all__ = ["BACKENDS", "OPERATORS", "Implementation", "Operator", "Placement", "backend", "placement", "reference_of"]

BACKENDS = ("triton", "cpp", "torch", "reference")

# "meta" computes shapes alone, which needs no GPU
_TRITON_DEVICES = ("cuda", "meta")

OPERATORS: dict[str, Operator[Any, Any]] = {}

P = TypeVar("P")
R = TypeVar("R")
A = ParamSpec("A")


class Placement(Protocol):
    """Where tensors are spread over devices: takes over an operator's call, with its local form as a last step."""

    def run(self, operator: Operator[P, R], problem: P, backend: str | None) -> R:
        """The operator's result on this device's share.

        Raises:
            BackendError: the operator has no spread form.
        """
        ...


class _Context(threading.local):
    """What the calls of one thread prefer; plain attributes, so that torch.compile guards on them."""

    def __init__(self) -> None:
        self.backends: list[str] = []
        self.placements: list[Placement] = []


_CONTEXT = _Context()


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # an import hook that refuses it
        return False


# Read once, so that torch.compile, which follows a choice, guards on two constants. Triton itself reads the variable
# when a kernel is defined.
_HAS_TRITON = _is_installed("triton")
_IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Prefer one back-end for every operator that this thread calls inside the block, wherever it can run.

    Args:
        name: `"reference"` (the definition), `"torch"`, `"cpp"` (compiled on this machine, CPU) or `"triton"` (GPU).
    Raises:
        ValueError: unknown name.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend: name must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}.")
    _CONTEXT.backends.append(name)
    try:
        yield
    finally:
        _CONTEXT.backends.pop()


@contextmanager
def placement(spread: Placement) -> Iterator[None]:
    """Hand every operator that this thread calls inside the block to `spread`."""
    _CONTEXT.placements.append(spread)
    try:
        yield
    finally:
        _CONTEXT.placements.pop()


def reference_of(function: Callable[A, R], doc: str) -> Callable[A, R]:
    """The operator by its definition: arguments (but for `backend`), checks and result are those of `function`."""

    @functools.wraps(function)
    def reference(*arguments: A.args, **options: A.kwargs) -> R:
        if "backend" in options:
            raise TypeError(f"{reference.__name__}: it is a back-end; leave `backend` out or call {function.__name__}.")
        with backend("reference"):
            return function(*arguments, **options)

    signature = inspect.signature(function)
    own = [parameter for name, parameter in signature.parameters.items() if name != "backend"]
    reference.__name__ = reference.__qualname__ = f"{function.__name__}_reference"
    reference.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
    reference.__doc__ = f"{doc}\n\n    Arguments, errors and result are those of `{function.__name__}`."
    return reference


@dataclass(frozen=True)
class Implementation(Generic[P, R]):
    """One form of an operator.

    Attributes:
        run: problem -> result.
        supports: problem -> None, or the reason why this form cannot compute it. Device and library are asked already.
    """

    run: Callable[[P], R]
    supports: Callable[[P], str | None] = lambda problem: None


class Operator(Generic[P, R]):
    """A named operator and its implementations.

    Args:
        name: the public function's name.
        implementations: back-end -> implementation. `"reference"` computes every problem.
        device_of: problem -> the device that decides.
    """

    def __init__(
        self,
        name: str,
        implementations: Mapping[str, Implementation[P, R]],
        device_of: Callable[[P], torch.device] = lambda problem: problem.q.device,  # type: ignore[attr-defined]
    ) -> None:
        self.name = name
        self.implementations = dict(implementations)
        self.device_of = device_of
        OPERATORS[name] = self

    def __call__(self, problem: P, backend: str | None = None) -> R:
        """The result of the demanded implementation, else of the preferred, else of the best that can.

        Raises:
            BackendError: the demanded one, or all, cannot compute the problem; with the reasons.
            ValueError: no back-end has that name.
        """
        if _CONTEXT.placements:
            return _CONTEXT.placements[-1].run(self, problem, backend)
        return self.implementations[self.choose(problem, backend)].run(problem)

    def choose(self, problem: P, backend: str | None = None) -> str:
        """The name of the back-end that `operator(problem, backend)` runs; raises as it does."""
        device = self.device_of(problem)
        if backend is not None:
            _check_name(backend, self.name)
            if self.why_not(backend, device, problem, demanded=True) is None:
                return backend
            raise BackendError(self._explain(backend, device, problem))
        for preferred in reversed(_CONTEXT.backends):
            if self.why_not(preferred, device, problem, demanded=True) is None:
                return preferred
        best = self.best(device, problem)
        if best is None:
            raise BackendError(self._explain(None, device, problem))
        return best

    def best(self, device: torch.device, problem: P | None = None) -> str | None:
        """The back-end taken when none is asked for, triton only on a GPU; None if none can run."""
        for candidate in BACKENDS:
            is_asked = candidate in self.implementations and (candidate != "triton" or device.type == "cuda")
            if is_asked and self.why_not(candidate, device, problem) is None:
                return candidate
        return None

    def why_not(
        self, candidate: str, device: torch.device, problem: P | None = None, *, demanded: bool = False
    ) -> str | None:
        """The reason why `candidate` does not run on `device`, or None when it does.

        Args:
            candidate: a back-end.
            device: where the tensors are.
            problem: asked too, if given.
            demanded: also take C++ kernels that were built after this process began with another form.
        """
        if candidate not in self.implementations:
            return f"{self.name} has no {candidate} implementation"
        if candidate == "triton":
            reason = _why_not_triton(device)
        elif candidate == "cpp":
            reason = _why_not_cpp(device, demanded)
        else:
            reason = None
        return reason if reason is not None or problem is None else self.implementations[candidate].supports(problem)

    def _explain(self, requested: str | None, device: torch.device, problem: P) -> str:
        reasons = "; ".join(f"{c}: {self.why_not(c, device, problem) or 'available'}" for c in BACKENDS)
        asked = f"the back-end {requested!r} cannot run" if requested else "no back-end can run"
        return f"{self.name}: {asked} on {device.type} ({reasons}). Leave `backend` out to take the best available one."


def _why_not_triton(device: torch.device) -> str | None:
    if not _HAS_TRITON:
        return 'triton is not installed: pip install "attensor[triton]"'
    if device.type in _TRITON_DEVICES or (device.type == "cpu" and _IS_INTERPRETED):
        return None
    slowly = "; set TRITON_INTERPRET=1 before Python starts to interpret them, slowly, for tests"
    return f"triton kernels need a GPU, the tensors are on {device.type}{slowly * (device.type == 'cpu')}"


def _why_not_cpp(device: torch.device, demanded: bool) -> str | None:
    if device.type != "cpu":
        return f"cpp kernels run on a CPU, the tensors are on {device.type}"
    if torch.compiler.is_compiling():
        from attensor.ops._native.traced import why_not

        return why_not(demanded)
    return build.why_not(True) if demanded else build.why_not_by_default()


def _check_name(name: str, owner: str) -> None:
    if name not in BACKENDS:
        known = ", ".join(map(repr, BACKENDS))
        raise ValueError(f"{owner}: backend must be one of {known}, or None for the best, got {name!r}.")
