"""Operators that choose by device alone; each moves to `_operator`, and this file goes with the last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attensor.ops import _operator
from attensor.ops._operator import Implementation

__all__ = ["Operator"]


class Operator(_operator.Operator[Any, Any]):
    """A named operator and its implementations, all with the same signature.

    Args:
        name: the public function's name.
        implementations: back-end -> function.
    """

    def __init__(self, name: str, implementations: Mapping[str, Callable[..., Any]]) -> None:
        wrapped = {backend: Implementation(run) for backend, run in implementations.items()}
        super().__init__(name, wrapped, device_of=lambda device: device)

    def choose(self, requested: Any, device: Any = None) -> Any:
        """The implementation to run: the requested one, else the context's, else the best."""
        return self.implementations[super().choose(device, requested)].run
