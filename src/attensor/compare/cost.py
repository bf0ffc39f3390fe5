"""Cost of a mixer layer alone: time and peak memory against length, decoding time and state against the context.

Before each length the time and memory it would take are predicted from the growth so far; what would not fit is not
tried, and the reason is part of the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from attensor.bench import measure_peak_bytes, paired
from attensor.lab.reason import is_out_of_memory
from attensor.report.numbers import size

__all__ = ["Cost", "Decode", "available_bytes", "measure_cost", "measure_decode"]

_MOST_ROUNDS = 7
# share of the remaining memory that a prediction may reach
_MEMORY_SHARE = 0.7
_SYSTEM = Path("/proc/meminfo")
_CONTROL_GROUP = Path("/sys/fs/cgroup")
# of decoding: tokens read at once, and tokens timed
_PIECE = 512
_TOKENS = 16
_WARM_UP = 3


@dataclass(frozen=True)
class Cost:
    """One length: seconds as medians over rounds, bytes beyond what was held before."""

    length: int
    forward: float
    forward_backward: float
    peak_bytes: int


def measure_cost(
    mixer: nn.Module,
    hidden_size: int,
    spaces: Sequence[tuple[int, ...]],
    *,
    seconds: float,
    device: str,
    precision: Callable[[], torch.autocast],
    on_row: Callable[[Cost], Any] = lambda row: None,
) -> str | None:
    """Measure one input `[1, *space, hidden_size]` after the other, and hand each result to `on_row`.

    Args:
        mixer: on `device`.
        hidden_size: width of its input.
        spaces: sizes, ascending: (tokens,) or (height, width).
        seconds: time for everything.
        device: "cpu" or "cuda".
        precision: makes the autocast context of a call.
        on_row: receives each result at once.
    Returns:
        Why it stopped before the last size, or None.
    """
    deadline = time.monotonic() + seconds
    rows: list[Cost] = []
    for space in spaces:
        reason = _why_not(rows, space, deadline, device)
        if reason is None:
            try:
                row = _measure(mixer, _input(space, hidden_size, device), seconds / 20, precision)
            except Exception as error:  # the mixer is the user's, and may fail in any way
                if not rows:
                    raise
                what = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
                reason = f"stopped at {rows[-1].length}: {_name(space)} failed ({what})"
        if reason is not None:
            return reason
        rows.append(row)
        on_row(row)
    return None


def _input(space: tuple[int, ...], hidden_size: int, device: str) -> Tensor:
    return torch.randn(1, *space, hidden_size, generator=torch.Generator().manual_seed(0)).to(device)


def _measure(mixer: nn.Module, inputs: Tensor, seconds: float, precision: Callable[[], torch.autocast]) -> Cost:
    def forward() -> None:
        with torch.no_grad(), precision():
            mixer(inputs)

    def forward_backward() -> None:
        hidden = inputs.detach().requires_grad_()
        with precision():
            out: Tensor = mixer(hidden)
        (out * inputs).sum().backward()  # type: ignore[no-untyped-call]
        mixer.zero_grad(set_to_none=True)

    started = time.perf_counter()
    peak = measure_peak_bytes(forward_backward, device=inputs.device)
    once = time.perf_counter() - started
    rounds = max(1, min(_MOST_ROUNDS, int(seconds / once)))
    # a first call pays for allocations; where calls take long that no longer matters
    times = paired({"forward": forward, "both": forward_backward}, rounds=rounds, warmup=1 if rounds > 2 else 0)
    return Cost(inputs[0, ..., 0].numel(), times["forward"], times["both"], peak)


def _why_not(rows: list[Cost], space: tuple[int, ...], deadline: float, device: str) -> str | None:
    if not rows:
        return None
    last = rows[-1]
    cells = torch.Size(space).numel() / last.length
    before = rows[-2] if len(rows) > 1 else last
    took = last.forward + last.forward_backward
    # at least in proportion, at most with the cube: one noisy pair of lengths must not stop everything
    growth = min(cells**3, max(cells, took / (before.forward + before.forward_backward)))
    needed = took * growth * 2  # once for the memory, once for the time
    if time.monotonic() + needed > deadline:
        call = last.forward_backward * growth
        return (
            f"stopped at {last.length}: {_name(space)} would take about {call:.2g} s a call, beyond the time for this"
        )
    growth = min(cells**2, max(cells, last.peak_bytes / max(1, before.peak_bytes)))
    memory = last.peak_bytes * growth
    available = available_bytes(device)
    if available is not None and memory > _MEMORY_SHARE * available:
        return (
            f"stopped at {last.length}: {_name(space)} would need about {size(memory)} "
            f"of the {size(available)} that are free"
        )
    return None


def _name(space: tuple[int, ...]) -> str:
    return "x".join(map(str, space))


@dataclass(frozen=True)
class Decode:
    """One context: median seconds for one more token, bytes the cache holds (batch 1, one layer)."""

    context: int
    seconds_per_token: float
    state_bytes: int


@torch.no_grad()
def measure_decode(
    mixer: nn.Module,
    hidden_size: int,
    contexts: Sequence[int],
    *,
    seconds: float,
    device: str,
    precision: Callable[[], torch.autocast],
    on_row: Callable[[Decode], Any] = lambda row: None,
) -> str | None:
    """Fill one cache further and further by prefill, and time single tokens at each context.

    Args:
        mixer: causal, on `device`; hidden_size is the width of its input.
        contexts: ascending; all together take at most `seconds`.
        precision: makes the autocast context of a call.
        on_row: receives each result at once.
    Returns:
        Why there is nothing or it stopped before the last context, or None.
    """
    if not hasattr(mixer, "new_cache"):
        return f"{type(mixer).__name__} has no new_cache(), so it cannot decode token by token"
    deadline = time.monotonic() + seconds
    cache = cast("Any", mixer.eval()).new_cache(1)
    hidden = torch.randn(1, _PIECE, hidden_size, generator=torch.Generator().manual_seed(0)).to(device)
    took, reached = 0.0, 0
    for context in contexts:
        started = time.monotonic()
        # the attention of a longer piece grows with the square at worst
        if reached and started + took * (context / reached) ** 2 > deadline:
            return f"stopped at {reached}: filling a context of {context} would take too long"
        with precision():
            while cache.length < context:
                mixer(hidden[:, : min(_PIECE, context - cache.length)], cache=cache)
            state_bytes = cache.nbytes
            token = paired({"token": lambda: mixer(hidden[:, :1], cache=cache)}, _TOKENS, _WARM_UP)["token"]
        on_row(Decode(context, token, state_bytes))
        took, reached = time.monotonic() - started, context
    return None


def available_bytes(device: str) -> int | None:
    """Bytes that can still be taken on `device`, a container's limit included; None when the system does not say."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
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
