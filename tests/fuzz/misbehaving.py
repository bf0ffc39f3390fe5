"""Pieces of work that end in every way that a worker must survive."""

from __future__ import annotations

import os
import time

__all__ = ["piece"]


def piece(factor: int, number: int) -> list[int]:
    """Number 2 ends the process, number 4 never returns."""
    if number == 2:
        os.abort()
    if number == 4:
        time.sleep(1000)
    return [factor * number]
