"""The training loop: a schedule, clipped gradients, averaged weights; stops and resumes without changing a bit.

    batch(step) -> loss -> backward -> clip -> step -> average, and at some steps: evaluate, checkpoint.

The batch is a function of the step, so that a resumed run needs no state of the data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from attensor.errors import Diverged, Stopped
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked, checked_fields
from attensor.train.checkpoint import load_checkpoint, save_checkpoint
from attensor.train.optimizer import adamw, learning_rate_factor

__all__ = ["Point", "Progress", "TrainConfig", "evaluation_steps", "polynomial_average", "train"]

Batch = TypeVar("Batch")

_Tensors = tuple[Tensor, ...] | list[Tensor]

_SAVING_SHARE = 0.02


@checked_fields
@dataclass(frozen=True)
class TrainConfig:
    """How a run is trained.

    Attributes:
        steps: optimizer steps.
        learning_rate: peak.
        warmup_fraction: share of the steps in which the rate rises, to fall along a half cosine after that.
        final_factor: share of the peak that is left at the end.
        constant_after: instead of both, steps in which the rate rises, to stay at its peak after that: what is known
            after a step then does not depend on how many steps follow.
        clip_norm: gradients are scaled down to this global norm; None leaves them.
        clip_value: before that, each entry of a gradient is cut to at most this size; None leaves them.
        accumulate: batches whose mean gradient makes one step; batch numbers are then `step * accumulate + i`.
        autocast: run forward passes in this type (bfloat16), or None.
        evaluations: points of the curve, evenly spread, the last one after the last step; or after which steps.
        checkpoint_seconds: least time between checkpoints; more when saving is slow, so that it costs 2 % at most.
    """

    steps: int
    learning_rate: float
    warmup_fraction: float = 0.1
    final_factor: float = 0.1
    constant_after: int | None = None
    clip_norm: float | None = 1.0
    clip_value: float | None = None
    accumulate: int = 1
    autocast: torch.dtype | None = None
    evaluations: int | tuple[int, ...] = 10
    checkpoint_seconds: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what nothing can be trained with.

        Raises:
            ValueError: a number out of its range.
        """
        check_range(self, 0, steps=self.steps, learning_rate=self.learning_rate, evaluations=self.evaluations)
        check_range(self, 0, final_factor=self.final_factor, constant_after=self.constant_after)
        check_range(self, 0, checkpoint_seconds=self.checkpoint_seconds)
        check_range(self, 0, math.nextafter(1, 2), warmup_fraction=self.warmup_fraction)
        check_range(self, above=0, clip_norm=self.clip_norm, clip_value=self.clip_value)
        check_range(self, 1, accumulate=self.accumulate)


class Point(NamedTuple):
    """One evaluation: steps done, seconds of training so far (evaluation not counted), score."""

    step: int
    seconds: float
    score: float


@dataclass
class Progress:
    """Where a run is: `step` steps are done, in `seconds` of training; `curve` holds the evaluations."""

    step: int = 0
    seconds: float = 0.0
    curve: list[Point] = field(default_factory=list)


@checked
def train(
    model: nn.Module,
    batch: Callable[[int], Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    config: TrainConfig,
    *,
    evaluate: Callable[[nn.Module], float],
    checkpoint: Path | None = None,
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer] = adamw,
    before_step: Callable[[int, torch.optim.Optimizer], None] = lambda step, optimizer: None,
    average: AveragedModel | None = None,
    on_step: Callable[[Progress], bool] = lambda progress: True,
) -> Progress:
    """Train `model` in place; continue from `checkpoint` when the file exists.

    Args:
        model: on its device, initialised.
        batch: number -> whatever `loss` takes; a pure function.
        loss: (model, batch) -> scalar to minimise.
        config: steps, learning rate and the rest.
        evaluate: model -> score; called in eval mode without gradients.
        checkpoint: file for the state; None keeps none.
        optimizer: (model, peak rate) -> optimizer; the schedule multiplies the rate of each of its groups.
        before_step: (step, optimizer), called before each step, for instance to reset the optimizer's state.
        average: of `model`, updated after each step, evaluated in its place and kept in checkpoints.
        on_step: called after each step; returning False saves and stops.
    Returns:
        Progress after the last step, with `config.evaluations` points (fewer when there are fewer steps).
    Raises:
        Diverged: the loss is no longer finite.
        Stopped: `on_step` returned False.
    """
    learner = optimizer(model, config.learning_rate)
    peaks = [group["lr"] for group in learner.param_groups]
    progress = Progress()
    if checkpoint is not None and checkpoint.exists():
        state = load_checkpoint(checkpoint, model, learner, average=average)
        progress = Progress(state["step"], state["seconds"], [Point(*point) for point in state["curve"]])
    points = evaluation_steps(config.steps, config.evaluations)
    save = _Saving(checkpoint, config.checkpoint_seconds)
    model.train()
    while progress.step < config.steps:
        started = time.perf_counter()
        before_step(progress.step, learner)
        factor = _factor(config, progress.step)
        for group, peak in zip(learner.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        value = _step(model, batch, loss, learner, config, progress.step)
        if average is not None:
            average.update_parameters(model)
        progress.step += 1
        at_point = progress.step in points
        if at_point:
            _check_finite(value.item(), "loss", progress.step, config)
        progress.seconds += time.perf_counter() - started
        if at_point:
            judged = model if average is None else average.module
            progress.curve.append(Point(progress.step, progress.seconds, _evaluated(judged, evaluate, config)))
            _check_finite(progress.curve[-1].score, "held-out score", progress.step, config)
        goes_on = on_step(progress)
        save(lambda path: save_checkpoint(path, model, learner, asdict(progress), average=average), now=not goes_on)
        if not goes_on:
            raise Stopped(f"stopped after step {progress.step} of {config.steps}")
    return progress


class _Saving:
    """Says when a checkpoint is due: every few seconds, and less often when saving is slow."""

    def __init__(self, path: Path | None, seconds: float) -> None:
        self._path, self._seconds, self._due = path, seconds, time.monotonic() + seconds

    def __call__(self, write: Callable[[Path], None], *, now: bool) -> None:
        if self._path is None or not (now or time.monotonic() >= self._due):
            return
        started = time.monotonic()
        write(self._path)
        took = time.monotonic() - started
        self._due = started + took + max(self._seconds, took / _SAVING_SHARE)


@checked
def polynomial_average(model: nn.Module, *, decay: float = 8.0) -> AveragedModel:
    """A running average of the weights of `model` that forgets its beginning, for `train(average=...)`.

        mean_t = mean_{t-1} + (decay + 1) / (t + decay) (weights_t - mean_{t-1})

    About the last `2 / decay` of the steps count, however many there have been: at every moment the average is what it
    would be if the run ended there. With a constant learning rate it takes the place of the rate's decay.

    Args:
        model: whose parameters are averaged; buffers are taken as they are.
        decay: 0 is the plain mean of all steps.
    Raises:
        ValueError: a decay below 0.
    Source: Shamir and Zhang, arXiv:1212.1824, section 4.
    """
    check_range("polynomial_average", 0, decay=decay)

    @torch.no_grad()
    def update(averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        weight = (decay + 1) / (int(count) + 1 + decay)
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight)
        else:
            torch._foreach_copy_(averaged, current)

    return AveragedModel(model, multi_avg_fn=update)


def _check_finite(value: float, what: str, step: int, config: TrainConfig) -> None:
    if not math.isfinite(value):
        raise Diverged(f"the {what} is {value} at step {step}, learning rate {config.learning_rate:g}")


def evaluation_steps(steps: int, evaluations: int | tuple[int, ...]) -> frozenset[int]:
    """After which steps the curve has a point: those named, or so many, evenly spread, ending with the last step."""
    if isinstance(evaluations, tuple):
        return frozenset(evaluations)
    return frozenset(max(1, round(steps * (i + 1) / evaluations)) for i in range(evaluations)) if steps else frozenset()


def _factor(config: TrainConfig, step: int) -> float:
    if config.constant_after is not None:
        return min(1.0, (step + 1) / max(1, config.constant_after))
    return learning_rate_factor(
        step, config.steps, warmup_steps=int(config.warmup_fraction * config.steps), final_factor=config.final_factor
    )


def _step(
    model: nn.Module,
    batch: Callable[[int], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    step: int,
) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    values = []
    for number in range(step * config.accumulate, (step + 1) * config.accumulate):
        with _precision(model, config):
            value = loss(model, batch(number)) / config.accumulate
        value.backward()  # type: ignore[no-untyped-call]
        values.append(value.detach())
    if config.clip_value is not None:
        nn.utils.clip_grad_value_(model.parameters(), config.clip_value)
    if config.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return torch.stack(values).sum()


@torch.no_grad()
def _evaluated(model: nn.Module, evaluate: Callable[[nn.Module], float], config: TrainConfig) -> float:
    model.eval()
    with _precision(model, config):
        score = evaluate(model)
    model.train()
    return score


def _precision(model: nn.Module, config: TrainConfig) -> torch.autocast:
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=config.autocast, enabled=config.autocast is not None)
