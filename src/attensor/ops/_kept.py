"""Results that are kept for the next call: what follows from sizes and options alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["kept"]

P = ParamSpec("P")
R = TypeVar("R")


def kept(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which computes once for the same arguments; each time for a compiler, a free size or a list.

    Args:
        function: of hashable arguments, without effects.
    """
    lookup = functools.lru_cache(maxsize=256)(function)

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*arguments, **options)
        try:
            return lookup(*arguments, **options)  # type: ignore[arg-type]
        except TypeError:  # not hashable
            return function(*arguments, **options)

    return call
