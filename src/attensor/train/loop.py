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
from typing import Generic, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from attensor.errors import Diverged, Stopped
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked, checked_fields
from attensor.train.checkpoint import load_checkpoint, save_checkpoint
from attensor.train.optimizer import adamw, learning_rate_factor

__all__ = [
    "Point", "Progress", "TrainConfig", "Training", "evaluation_steps", "polynomial_average", "run_training", "train",
]  # fmt: skip

Model = TypeVar("Model", bound=nn.Module)
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


class Training(Protocol[Model, Batch]):
    """What is trained, on what, and how it is scored: the arguments of `train` that belong together."""

    @property
    def model(self) -> Model:
        """In training."""

    def batch(self, step: int, /) -> Batch:
        """Of a step."""

    def loss(self, model: Model, batch: Batch, /) -> Tensor:
        """To be minimised."""

    def optimizer(self, model: Model, learning_rate: float, /) -> torch.optim.Optimizer:
        """With the peak rate."""

    def evaluate(self, model: Model, /) -> float:
        """The first score."""


@checked
def train(
    model: Model,
    batch: Callable[[int], Batch],
    loss: Callable[[Model, Batch], Tensor],
    config: TrainConfig,
    *,
    evaluate: Callable[[Model], float],
    checkpoint: Path | None = None,
    optimizer: Callable[[Model, float], torch.optim.Optimizer] = adamw,
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
        Diverged: the loss is no longer finite. Stopped: `on_step` returned False.
    """
    learner = optimizer(model, config.learning_rate)
    run = _Run(model, batch, loss, config, evaluate, learner, before_step, average)
    return run.to_the_end(checkpoint, on_step)


@checked
def run_training(
    training: Training[Model, Batch],
    config: TrainConfig,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[Progress], bool] = lambda progress: True,
) -> Progress:
    """`train` with all that a training has; arguments as there."""
    return train(
        training.model, training.batch, training.loss, config, evaluate=training.evaluate, checkpoint=checkpoint,
        optimizer=training.optimizer, on_step=on_step,
    )  # fmt: skip


@dataclass
class _Run(Generic[Model, Batch]):
    """A training under way: what learns, by what, and how far it is; see `train`."""

    model: Model
    batch: Callable[[int], Batch]
    loss: Callable[[Model, Batch], Tensor]
    config: TrainConfig
    evaluate: Callable[[Model], float]
    optimizer: torch.optim.Optimizer
    before_step: Callable[[int, torch.optim.Optimizer], None]
    average: AveragedModel | None
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        # before a checkpoint is read, which has the rates of its own step
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.points = evaluation_steps(self.config.steps, self.config.evaluations)

    def to_the_end(self, checkpoint: Path | None, on_step: Callable[[Progress], bool]) -> Progress:
        if checkpoint is not None and checkpoint.exists():
            self.resume(checkpoint)
        save = _Saving(checkpoint, self.config.checkpoint_seconds)
        self.model.train()
        while self.progress.step < self.config.steps:
            self.advance()
            goes_on = on_step(self.progress)
            save(self.keep, now=not goes_on)
            if not goes_on:
                raise Stopped(f"stopped after step {self.progress.step} of {self.config.steps}")
        return self.progress

    def resume(self, path: Path) -> None:
        state = load_checkpoint(path, self.model, self.optimizer, average=self.average)
        self.progress = Progress(state["step"], state["seconds"], [Point(*point) for point in state["curve"]])

    def keep(self, path: Path) -> None:
        save_checkpoint(path, self.model, self.optimizer, asdict(self.progress), average=self.average)

    def advance(self) -> None:
        """One step, and the evaluation where it is due."""
        progress, started = self.progress, time.perf_counter()
        value = self._step()
        progress.step += 1
        is_point = progress.step in self.points
        if is_point:
            # reading the loss waits for the device: it belongs to the time
            self._check_finite(value.item(), "loss")
        progress.seconds += time.perf_counter() - started
        if is_point:
            progress.curve.append(Point(progress.step, progress.seconds, self._score()))
            self._check_finite(progress.curve[-1].score, "held-out score")

    def _step(self) -> Tensor:
        config, parameters = self.config, self.model.parameters
        self.before_step(self.progress.step, self.optimizer)
        factor = _factor(config, self.progress.step)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        value = self._gradient()
        if config.clip_value is not None:
            nn.utils.clip_grad_value_(parameters(), config.clip_value)
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters(), config.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return value

    def _gradient(self) -> Tensor:
        """The loss of the step's batches, whose gradients are summed in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        first, values = self.progress.step * self.config.accumulate, []
        for number in range(first, first + self.config.accumulate):
            with self._precision():
                value = self.loss(self.model, self.batch(number)) / self.config.accumulate
            value.backward()  # type: ignore[no-untyped-call]
            values.append(value.detach())
        return torch.stack(values).sum()

    @torch.no_grad()
    def _score(self) -> float:
        # a copy of the model, of its type
        judged = self.model if self.average is None else cast("Model", self.average.module)
        judged.eval()
        with self._precision():
            score = self.evaluate(judged)
        judged.train()
        return score

    def _precision(self) -> torch.autocast:
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, dtype=self.config.autocast, enabled=self.config.autocast is not None)

    def _check_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            where = f"step {self.progress.step}, learning rate {self.config.learning_rate:g}"
            raise Diverged(f"the {what} is {value} at {where}")


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
