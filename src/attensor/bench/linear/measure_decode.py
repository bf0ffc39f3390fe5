"""Contestants of `decode` against each other, at every position in turn."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attensor.bench.linear.decode import DECODERS, POSITIONS, Decoder, Workload
from attensor.bench.linear.registry import OURS
from attensor.bench.timing import paired

__all__ = ["DecodeRow", "measure_decode"]

SOFTMAX = "sdpa"
# Largest difference from ours after all layers, relative to the largest output.
TOLERANCE = {"cpu": 1e-3, "cuda": 5e-2}


@dataclass(frozen=True)
class DecodeRow:
    """One way of decoding.

    Attributes:
        task: what is done for a token; contestants of one task do the same, softmax attention excepted.
        peer: name of the contestant.
        layers: that `seconds` and `state_bytes` are for.
        seconds: position -> median of a token through all layers; empty when it was left out.
        state_bytes: position -> what all layers keep.
        against_ours: its time over that of ours in the same task, at the last position.
        growth: its time at the last position over that at the first.
        max_error: of a token against ours, over the largest output.
        skipped: why it was left out.
    """

    task: str
    peer: str
    layers: int
    seconds: dict[int, float] = field(default_factory=dict)
    state_bytes: dict[int, int] = field(default_factory=dict)
    against_ours: float | None = None
    growth: float | None = None
    max_error: float | None = None
    skipped: str = ""


@dataclass
class _Entry:
    """A contestant at every position, or why there is none."""

    decoders: list[Decoder] = field(default_factory=list)
    max_error: float | None = None
    skipped: str = ""


def measure_decode(
    work: Workload, peers: Collection[str], rounds: int, tick: Callable[[str, float], None]
) -> list[DecodeRow]:
    """Time of a token at each of `POSITIONS`, all contestants taking turns.

    Args:
        work: layers and device.
        peers: names of those that may take part; ours always does.
        rounds: timed tokens; the median counts.
        tick: told what runs, and the newly done share of the whole.
    """
    tick("decode, preparing", 0.0)
    entries: dict[tuple[str, str], _Entry] = {}
    expected: dict[str, Tensor] = {}  # of ours, by task
    for task, peer in DECODERS:
        if peer == OURS or peer in peers:
            entries[task, peer] = _prepare(work, task, peer, expected)
    calls = {
        f"{task}/{peer}/{position}": torch.no_grad()(decoder.step)
        for (task, peer), entry in entries.items()
        for position, decoder in zip(POSITIONS, entry.decoders)
    }
    share = 1 / max(1, rounds * len(calls))
    medians = paired(calls, rounds, lead_in=1, after_call=lambda name: tick(f"decode, {name}", share))
    return [_row(work, task, peer, entry, medians) for (task, peer), entry in entries.items()]


def _prepare(work: Workload, task: str, peer: str, expected: dict[str, Tensor]) -> _Entry:
    """Build it at every position and compare its first token with that of ours, which leaves its own in `expected`."""
    entry = _Entry()
    try:
        for position in POSITIONS:
            made = DECODERS[task, peer](work, position)
            if isinstance(made, str):
                return _Entry(skipped=made)
            entry.decoders.append(made)
        with torch.no_grad():
            out = entry.decoders[0].step().float().flatten()
    except Exception as error:  # whatever goes wrong inside a peer is the reason why it is left out
        return _Entry(skipped=f"{type(error).__name__}: {error}")
    if peer == SOFTMAX:
        return entry
    entry.max_error = float((out - expected.setdefault(task, out)).abs().max() / out.abs().max())
    if not entry.max_error <= TOLERANCE[work.device]:  # also when it is NaN
        return _Entry(skipped=f"computes another function: it differs by {entry.max_error:.1e} of the largest value")
    return entry


def _row(work: Workload, task: str, peer: str, entry: _Entry, medians: dict[str, float]) -> DecodeRow:
    if not entry.decoders:
        return DecodeRow(task, peer, work.layers, skipped=entry.skipped)
    seconds = {
        position: medians[f"{task}/{peer}/{position}"] * work.layers / decoder.layers
        for position, decoder in zip(POSITIONS, entry.decoders)
    }
    last = seconds[POSITIONS[-1]]
    ours = medians.get(f"{task}/{OURS}/{POSITIONS[-1]}")
    return DecodeRow(
        task,
        peer,
        work.layers,
        seconds,
        {
            position: decoder.state_bytes * work.layers // decoder.layers
            for position, decoder in zip(POSITIONS, entry.decoders)
        },
        against_ours=None if ours is None else last / ours,
        growth=last / seconds[POSITIONS[0]],
        max_error=None if peer == OURS else entry.max_error,
    )
