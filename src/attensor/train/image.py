"""Training of image models on the one loop: batches by number, and scores of what is held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from attensor.data.image_batches import Batch, HeldOutBatches, TrainingBatches, batches_from
from attensor.data.image_source import ImageSource
from attensor.data.left_out import LeftOut
from attensor.errors import DataError, ShapeError
from attensor.models.vision.image_model import ImageModel
from attensor.nn._shapes import check_sizes
from attensor.ops._checks import checked_fields
from attensor.train.ema import exponential_average
from attensor.train.image_recipe import ImageRecipe
from attensor.train.image_tasks import Classes, Scores, task_of
from attensor.train.layer_decay import rate_shares
from attensor.train.loop import Progress, TrainConfig, train
from attensor.train.optimizer import parameter_groups

__all__ = ["ImageSetup", "ImageTraining"]

_BETAS = (0.9, 0.999)
_HELD_OUT_BATCH = 4  # of batches that are trained on
_BROKEN = "broken image"


@checked_fields
@dataclass(frozen=True, kw_only=True)
class ImageSetup:
    """What decides the numbers of a run, beside the model, the images, the machine and its threads.

    Attributes:
        recipe: schedule and changes of images.
        image_size: height and width in pixels.
        batch_size: images of a batch.
        steps: of the optimizer.
        accumulate: batches of a step.
        evaluations: points of the curve; 0 for none.
        seed: of weights that are drawn, of the order and of views.
        autocast: type of forward passes; None for that of the parameters.
    Raises:
        ValueError: a number that is too small.
    """

    recipe: ImageRecipe
    image_size: tuple[int, int]
    batch_size: int
    steps: int
    accumulate: int = 1
    evaluations: int = 10
    seed: int = 0
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to do."""
        check_sizes(self, evaluations=0, seed=-(2**63))

    @property
    def images_per_step(self) -> int:
        """Of all batches of a step."""
        return self.batch_size * self.accumulate

    @property
    def learning_rate(self) -> float:
        """The recipe's, in proportion to the images of a step."""
        return self.recipe.learning_rate * self.images_per_step / self.recipe.batch_size


@dataclass
class ImageTraining:
    """A model in training.

    Attributes:
        model: on its device; trained in place. `task_of` says how; what it does not know is a classifier.
        source: the images.
        setup: how.
        workers: processes that decode and change images; 0 does both in this one. It changes no number.
        device: of the model.
        broken: files that could not be read, named and counted once each.
        scores: step -> what was measured after it.
    """

    model: nn.Module
    source: ImageSource
    setup: ImageSetup
    workers: int = 0
    device: torch.device | str = "cpu"
    broken: set[str] = field(default_factory=set)
    scores: dict[int, Scores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Prepare batches and, if the recipe has one, the average."""
        recipe, setup = self.setup.recipe, self.setup
        self.average = None if recipe.ema is None else exponential_average(self.model, recipe.ema)
        self.task = task_of(type(self.model)) or Classes()
        self.views = self.task.views(recipe.views)
        self._training = TrainingBatches(
            self.source,
            setup.image_size,
            views=self.views,
            mixing=recipe.mixing,
            smoothing=recipe.smoothing,
            batch_size=setup.batch_size,
            seed=setup.seed,
        )
        self._ahead: Iterator[Batch] = iter(())
        self._next = -1
        self._last: Scores | None = None

    @property
    def trained(self) -> nn.Module:
        """The weights that are scored and kept: the average, if there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def config(self) -> TrainConfig:
        """The schedule for the loop."""
        recipe, setup = self.setup.recipe, self.setup
        return TrainConfig(
            setup.steps,
            setup.learning_rate,
            warmup_fraction=min(1.0, recipe.warmup_epochs / recipe.epochs),
            final_factor=recipe.final_factor,
            clip_norm=recipe.clip_norm,
            accumulate=setup.accumulate,
            autocast=setup.autocast,
            evaluations=setup.evaluations,
        )

    def check(self) -> None:
        """Try the model on one empty image, before anything is read.

        Raises:
            ValueError: it does not take images of this size, has another number of classes than the source, or does not
                go with the recipe.
        """
        self.task.refuse(self.model, self.setup.recipe)
        self.optimizer(self.model, self.setup.learning_rate)
        was_training = self.model.training
        size = self.setup.image_size
        try:
            with torch.no_grad():
                image = torch.zeros(1, 3, *size, device=self.device)
                why_not = self.task.trial(self.model.eval(), image, self.source.classes)
        except (ShapeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"ImageTraining: image_size {size[0]} x {size[1]} is not one of this {type(self.model).__name__}: "
                f"{error}"
            ) from error
        finally:
            self.model.train(was_training)
        if why_not is not None:
            raise ValueError(f"ImageTraining: {self.source.name} {why_not}.")

    def run(
        self, checkpoint: Path | None = None, *, on_step: Callable[[Progress], bool] = lambda progress: True
    ) -> Progress:
        """Train from the beginning, or from `checkpoint` where the file exists.

        Args:
            checkpoint: file for the state; None keeps none.
            on_step: called after each step, when `scores` has those of the step; returning False saves and stops.
        Raises:
            Diverged, Stopped: as of `train`.
            DataError: no image can be read any more.
        """

        def after(progress: Progress) -> bool:
            if self._last is not None and progress.curve and progress.curve[-1].step == progress.step:
                self.scores[progress.step] = self._last
            return on_step(progress)

        torch.manual_seed(self.setup.seed)
        return train(
            self.model,
            self.batch,
            self.task.loss,
            self.config,
            evaluate=self._evaluate,
            checkpoint=checkpoint,
            optimizer=self.optimizer,
            average=self.average,
            on_step=after,
        )

    def batch(self, number: int) -> tuple[Tensor, ...]:
        """The batch of this number on the device; the next ones are made meanwhile."""
        if number != self._next:
            numbers = range(number, self.setup.steps * self.setup.accumulate)
            self._ahead = batches_from(self._training, numbers, workers=self.workers)
        self._next = number + 1
        made = next(self._ahead)
        self.broken.update(made.broken)
        return self.task.batch(self.model, made.images.to(self.device), made.targets.to(self.device))

    def optimizer(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """That of the recipe, with its decays."""
        recipe = self.setup.recipe
        shares = None
        if recipe.layer_decay != 1:
            if not isinstance(model, ImageModel):
                raise ValueError(f"ImageTraining: layer_decay is for image models, not for {type(model).__name__}.")
            shares = rate_shares(model, recipe.layer_decay)
        groups = parameter_groups(model, learning_rate, weight_decay=recipe.weight_decay, rate_shares=shares)
        if recipe.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(groups, lr=learning_rate, betas=_BETAS, fused=True)

    @torch.no_grad()
    def score(self, model: nn.Module, indices: Tensor) -> Scores:
        """Scores of a model in evaluation mode on these images, each once.

        Raises:
            DataError: none of them can be read.
        """
        setup, task = self.setup, self.task
        size = _HELD_OUT_BATCH * setup.batch_size
        batches = HeldOutBatches(self.source, indices, setup.image_size, views=self.views, batch_size=size)
        sums, count = torch.zeros((), dtype=torch.float64), 0
        for made in batches_from(batches, range(len(batches)), workers=self.workers):
            self.broken.update(made.broken)
            if len(made.targets):
                sums = sums + task.sums(model, made.images.to(self.device), made.targets)
                count += len(made.targets)
        if not count:
            raise DataError(f"{self.source.name}: none of the {len(indices)} images that are held out can be read.")
        scores: Scores = task.scores(*(sums / count).tolist(), images=count)
        return scores

    def sentences(self) -> tuple[str, ...]:
        """What was left out as broken, for the user."""
        left_out = LeftOut()
        for name in sorted(self.broken):
            left_out.add(name, _BROKEN)
        return left_out.sentences()

    def _evaluate(self, model: nn.Module) -> float:
        self._last = self.score(model, self.source.held_out)
        return self._last.value
