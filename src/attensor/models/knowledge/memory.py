"""Memory: a concept written at once, episodes summed into knowledge, and how many symbols a state can hold.

    one shot       a_new <- gamma - mean(gamma), scaled to the mean norm of the columns        gamma = sig(q)
    episodic ->    P(s, p, o) = sum_t P(t) P(s, p, o | t): in a multilinear model without signs the sum moves inside,
    semantic       abar = sum_t P(t) a_t / Z_t takes the place of a_t, and nothing is lost; in a model with exp or
                   sigma (the Tensor Brain's recall) `mean_time` is the mean-field approximation of it
Source: arXiv:1807.00228, section 4; 2109.13392. The scale of the one-shot write is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attensor.errors import ShapeError
from attensor.models.knowledge.scorer import Scorer
from attensor.models.knowledge.tensor_brain import TensorBrain
from attensor.nn._shapes import check_range
from attensor.ops._checks import check_float, checked

__all__ = ["marginalise", "mean_time", "superposition_curve", "write_concept"]


@checked
@torch.no_grad()
def write_concept(brain: TensorBrain, state: Tensor, *, group: str = "entities") -> int:
    """A new symbol from one state, without training; columns of later groups move up by one.

    Args:
        brain: gets another column (a new parameter `A`: optimizers must be made anew) and another configuration.
        state: [D], q at the moment that is to be kept.
        group: "entities", "predicates", "times", or one of the unary groups.
    Returns:
        its number in the group, the last.
    Raises:
        ShapeError: another state. ValueError: no such group.
    Cost: O(D K), all columns are copied.
    """
    brain.columns(group)
    check_float("write_concept", "state", state, brain.A, "the brain")
    if state.shape != (brain.config.dim,):
        raise ShapeError(f"write_concept: state must be [{brain.config.dim}], got {list(state.shape)}.")
    gamma = torch.sigmoid(state.to(brain.A.dtype))
    column = gamma - gamma.mean()
    column *= brain.A.norm(dim=0).mean() / column.norm().clamp(min=torch.finfo(column.dtype).tiny)
    place, size = brain.config.groups[group].stop, len(brain.config.groups[group])
    brain.A = nn.Parameter(torch.cat([brain.A[:, :place], column[:, None], brain.A[:, place:]], 1))
    if brain.a0 is not None:
        offset = -column.sum()[None] / 2
        brain.a0 = nn.Parameter(torch.cat([brain.a0[:place], offset, brain.a0[place:]]))
    counts = {"entities": "num_entities", "predicates": "num_predicates", "times": "num_times"}
    grown: dict[str, Any] = {"unary": {**brain.config.unary, group: size + 1}}
    brain.config = replace(brain.config, **({counts[group]: size + 1} if group in counts else grown))
    return size


@checked
def mean_time(brain: TensorBrain, weights: Tensor) -> Tensor:
    """The state that stands for all episodes at once, abar = sum_t P(t) a_t: `start` of `TensorBrain.remember`.

    Args:
        brain: with times.
        weights: [T], P(t).
    Returns:
        [1, D].
    Raises:
        ShapeError: another number of weights.
    """
    columns = brain.columns("times")
    check_float("mean_time", "weights", weights, columns, "the brain")
    if weights.shape != (columns.shape[1],):
        raise ShapeError(f"mean_time: weights must be [{columns.shape[1]}], got {list(weights.shape)}.")
    return (columns @ weights.to(columns.dtype))[None]


@checked
@torch.no_grad()
def marginalise(scorer: Scorer, weights: Tensor) -> Scorer:
    """The semantic model of an episodic one: its theta_spo is P(s, p, o) = sum_t P(t) theta_spot / Z_t, exactly.

    Args:
        scorer: `nonnegative`, with times: its theta_spot over all triples, divided by their sum Z_t, is
            P(s, p, o | t).
        weights: [T], P(t), not negative, of sum 1.
    Returns:
        a scorer of the same kind without times; its theta sum to 1.
    Raises:
        ValueError: a model with signs or without times, weights that are no probabilities. ShapeError: their number.
    Cost: Z_t in closed form, O((N + P + T) r), of Tucker O(r r2 r r3) more.
    """
    if not scorer.config.nonnegative:
        raise ValueError("marginalise: scorer must be nonnegative: with signs theta is no share of probability.")
    if scorer.times is None:
        raise ValueError("marginalise: scorer must have times to sum over; build it with num_times.")
    count = scorer.config.num_times
    check_float("marginalise", "weights", weights, scorer.times.weight, "the scorer")
    if weights.shape != (count,):
        raise ShapeError(f"marginalise: weights must be [{count}], got {list(weights.shape)}.")
    if bool((weights < 0).any()) or abs(float(weights.sum()) - 1) > 1e-5:
        raise ValueError(f"marginalise: weights must be at least 0 and of sum 1, got sum {float(weights.sum()):.6g}.")
    totals = scorer.total(torch.arange(count, device=weights.device))
    return scorer.at_mixed_time(weights.to(totals.dtype) / totals)


@checked
@torch.no_grad()
def superposition_curve(
    columns: Tensor, sizes: Sequence[int], *, trials: int = 200, generator: torch.Generator | None = None
) -> list[float]:
    """How well the symbols of a sum can be told: the share of m columns that are among the m best of all.

    Args:
        columns: [D, K], symbols; a state is the sum of m of them, read by sig(q) - 1/2.
        sizes: each m, from 1 to K.
        trials: sums a size.
        generator: of the choices; PyTorch's own if None.
    Returns:
        the mean recall of each m.
    Raises:
        ShapeError: no matrix. ValueError: a size or a number of trials out of range.
    """
    check_float("superposition_curve", "columns", columns, columns, "itself")
    if columns.ndim != 2 or 0 in columns.shape or columns.is_meta:
        raise ShapeError(
            f"superposition_curve: columns must be [D, K] with numbers, got {list(columns.shape)} on {columns.device}."
        )
    if not sizes:
        raise ValueError("superposition_curve: sizes must have an entry, got none; give numbers of columns.")
    check_range("superposition_curve", 1, columns.shape[1] + 1, sizes=tuple(sizes))
    check_range("superposition_curve", 1, trials=trials)
    even, found = torch.ones(trials, columns.shape[1], device=columns.device), []
    for size in sizes:
        chosen = torch.multinomial(even, int(size), generator=generator)  # [trials, m], distinct in a row
        state = columns.T[chosen].sum(1)
        best = ((torch.sigmoid(state) - 0.5) @ columns).topk(int(size), -1).indices
        found.append((best[:, :, None] == chosen[:, None]).any(-1).double().mean().item())
    return found
