"""Tile sizes: candidates for the autotuner, less those whose tiles cannot fit a multiprocessor's shared memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import triton
import triton.language as tl

__all__ = ["INTERPRETED", "fitting", "operand_width", "padded", "tuned"]

# triton reads the variable when a kernel is defined, so it is read here at the same time
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# of an H100, should the driver not tell
_SHARED_MEMORY = 232448


def padded(size: int) -> int:
    """The smallest tile that holds `size`: a power of two, at least 16 as matrix units want it."""
    return max(16, 1 << (size - 1).bit_length())


def operand_width(dot: Any) -> int:
    """Bytes of one number in a matrix product."""
    return 4 if dot == tl.float32 else 2


def tuned(
    tiles: Mapping[str, Sequence[int]],
    limits: Mapping[str, str],
    shared: Callable[[Mapping[str, Any]], tuple[int, int]],
    key: Iterable[str],
) -> Callable[[Any], Any]:
    """A decorator for kernels: the fastest of all combinations of tile sizes, warps and stages that fit.

    Args:
        tiles: meta-parameter -> its candidates, smallest first. In the interpreter the smallest are taken.
        limits: meta-parameter -> the argument whose size, padded, it need not exceed.
        shared: from a kernel's arguments and tile sizes, upper bounds of the bytes of shared memory for each stage
            beyond the first, and for all else.
        key: arguments whose change asks for new tuning; never the number of tokens.
    """
    configs = [
        triton.Config(dict(zip(tiles, sizes, strict=True)), num_warps=warps, num_stages=stages)
        for sizes in itertools.product(*tiles.values())
        for warps, stages in ((4, 2), (4, 1), (4, 3), (8, 2))
    ]

    def prune(configs: list[Any], named: Mapping[str, Any], **rest: Any) -> list[Any]:
        return fitting(configs, {**named, **rest}, limits, shared, _shared_memory())

    return triton.autotune(  # type: ignore[no-any-return]
        configs[:1] if INTERPRETED else configs, key=list(key), prune_configs_by={"early_config_prune": prune}
    )


def fitting(
    configs: list[Any],
    arguments: Mapping[str, Any],
    limits: Mapping[str, str],
    shared: Callable[[Mapping[str, Any]], tuple[int, int]],
    available: int,
) -> list[Any]:
    """The configs that waste no tile and fit `available` bytes of shared memory; the smallest if none does."""

    def wastes(config: Any) -> bool:
        return any(size > padded(arguments[limits[name]]) for name, size in config.kwargs.items())

    def needs(config: Any) -> int:
        stage, fixed = shared({**arguments, **config.kwargs})
        return int((config.num_stages - 1) * stage + fixed)

    useful = [config for config in configs if not wastes(config)]
    return [config for config in useful if needs(config) <= available] or [min(useful or configs, key=needs)]


def _shared_memory() -> int:
    """Bytes of shared memory that one program may use on the current device."""
    driver = triton.runtime.driver.active
    properties = driver.utils.get_device_properties(driver.get_current_device())
    return int(properties.get("max_shared_mem", _SHARED_MEMORY))
