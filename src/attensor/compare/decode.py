"""Decoding with a mixer layer's cache: milliseconds a token and bytes of state against the context."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from attensor.bench import paired

__all__ = ["Decode", "measure_decode"]

_PIECE = 512
_TOKENS = 16
_WARM_UP = 3


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
