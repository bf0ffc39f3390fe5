"""Beam search over sequences of places or tokens, for any decoder whose state can be re-ordered.

Constraints are applied before the softmax, so that probabilities are those among what is allowed; a beam that is
finished goes on with the end symbol at no cost, and is never continued otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from attensor.ops._checks import checked

__all__ = ["Beams", "State", "beam_search"]


class State(Protocol):
    """What a decoder keeps between steps, a row for each beam; the caches of `attensor.nn` are such."""

    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row `index[i]` was."""
        ...


class Beams(NamedTuple):
    """What was found, the best first.

    Attributes:
        sequences: [B, width, steps], int64; behind the first end symbol there are only end symbols.
        log_probs: [B, width], sums over the steps, not divided by their number; -inf where there was no such beam.
    """

    sequences: Tensor
    log_probs: Tensor

    @property
    def best(self) -> Tensor:
        """[B, steps]."""
        return self.sequences[:, 0]


@torch.no_grad()
@checked
def beam_search(
    step: Callable[[Tensor | None, State], Tensor],
    state: State,
    *,
    batch_size: int,
    max_steps: int,
    width: int = 1,
    allowed: Callable[[Tensor], Tensor] | None = None,
    end: int = 0,
    renormalise: bool = True,
) -> Beams:
    """The most likely sequences, as far as `width` beams at a time find them.

    Args:
        step: (last choices [B, width], None before the first; state) to logits [B, width, choices]; changes the state.
        state: with a row for each of the B inputs; it is spread over the beams here.
        batch_size: B.
        max_steps: longest sequence, the end symbol included.
        width: beams of an input; 1 is greedy.
        allowed: beams so far [B, width, steps] to a mask [B, width, choices], True for what may follow.
        end: the choice that finishes a beam.
        renormalise: probabilities are those among what is allowed; False leaves them as the model has them.
    Raises:
        ValueError: a number below 1.
    Cost: one call of `step` for each place of the longest sequence.
    """
    _check_numbers(max_steps=max_steps, width=width, batch_size=batch_size)
    state.reorder(torch.arange(batch_size).repeat_interleave(width))
    logits = step(None, state)
    beams = _Unfinished.before_first(logits, batch_size, width)
    for number in range(max_steps):
        if number > 0:
            logits = step(beams.sequences[..., -1], state)
        mask = None if allowed is None else allowed(beams.sequences)
        scores = beams.log_probs[..., None] + _log_probabilities(logits, mask, beams.finished, end, renormalise)
        beams, rows = beams.extended(scores, end)
        state.reorder(rows)
        if bool(beams.finished.all()):
            break
    return Beams(beams.sequences, beams.log_probs)


def _check_numbers(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"beam_search: {name} must be at least 1, got {number}.")


class _Unfinished(NamedTuple):
    """Beams between two steps: as in `Beams`, and which of them [B, width] have ended."""

    sequences: Tensor
    log_probs: Tensor
    finished: Tensor

    @classmethod
    def before_first(cls, logits: Tensor, batch_size: int, width: int) -> _Unfinished:
        # all beams are the same before the first choice: one of them counts
        log_probs = logits.new_full((batch_size, width), -torch.inf)
        log_probs[:, 0] = 0.0
        sequences = torch.empty(batch_size, width, 0, dtype=torch.int64, device=logits.device)
        return cls(sequences, log_probs, torch.zeros(batch_size, width, dtype=torch.bool, device=logits.device))

    def extended(self, scores: Tensor, end: int) -> tuple[_Unfinished, Tensor]:
        """The best of all continuations, by scores [B, width, choices]; and of which row [B width] each is one."""
        batch_size, width, steps = self.sequences.shape
        log_probs, chosen = scores.flatten(1).topk(width)
        parents, choices = chosen // scores.shape[-1], chosen % scores.shape[-1]
        rows = torch.arange(batch_size, device=parents.device)[:, None] * width + parents
        before = self.sequences.gather(1, parents[..., None].expand(-1, -1, steps))
        finished = self.finished.gather(1, parents) | (choices == end) | (log_probs == -torch.inf)
        return _Unfinished(torch.cat([before, choices[..., None]], -1), log_probs, finished), rows.flatten()


def _log_probabilities(logits: Tensor, mask: Tensor | None, finished: Tensor, end: int, renormalise: bool) -> Tensor:
    """Of the next choice [B, width, choices]; -inf for what is not allowed."""
    if mask is not None and renormalise:
        logits = logits.masked_fill(~mask, -torch.inf)
    found = logits.log_softmax(-1)
    if mask is not None:
        found = found.masked_fill(~mask, -torch.inf)
    only_end = torch.full_like(found[:1, :1], -torch.inf)
    only_end[..., end] = 0.0
    return torch.where(finished[..., None], only_end, found)
