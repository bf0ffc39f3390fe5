"""What image training asks of a kind of model: its batches, its loss, its scores, and what it leaves behind.

    task = task_of(type(model))
    loss = task.loss(model, task.batch(model, images, targets))

Classifiers are trained on labels and scored by top-1 and top-5; models of the images themselves, such as the Axial
Transformer, on levels, and scored in bits a dimension. A model says which it is by its methods: one with those of
`ImageLikelihood` is of the latter kind. A classifier with a `training_loss(images, targets)` is trained by that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from attensor.data.augment import Pixels, Views
from attensor.files import atomic_path, write_json
from attensor.metrics.classification import top_hits
from attensor.models.vision.image_model import ImageModel
from attensor.train.image_recipe import ImageRecipe

__all__ = ["BitScores", "ClassScores", "Classes", "ImageLikelihood", "ImageTask", "Likelihoods", "Scores", "task_of"]

_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow makes grey images


class Scores(Protocol):
    """What a model was measured by, with words for the user as its `str`."""

    @property
    def images(self) -> int:
        """How many were scored."""

    @property
    def value(self) -> float:
        """The one number that stands for all."""


@dataclass(frozen=True)
class ClassScores:
    """Shares of images whose class is the first answer, or among the first five; mean loss; how many."""

    top1: float
    top5: float
    loss: float
    images: int

    @property
    def value(self) -> float:
        """The share of first answers."""
        return self.top1

    def __str__(self) -> str:
        return f"top-1 {self.top1:.2%}, top-5 {self.top5:.2%}, loss {self.loss:.4f}, of {self.images} images"


@dataclass(frozen=True)
class BitScores:
    """Mean bits that a channel of a pixel takes, and how many images."""

    bits_per_dim: float
    images: int

    @property
    def value(self) -> float:
        """The bits."""
        return self.bits_per_dim

    def __str__(self) -> str:
        return f"{self.bits_per_dim:.4f} bits/dim, of {self.images} images"


class ImageTask(Protocol):
    """A kind of model, for `ImageTraining`.

    Attributes:
        recipe: name of the recipe that is taken when none is asked for.
        digits_size: side to which the bundled digits are scaled; None for the model's own.
        scores: built of the means of `sums`, in their order, and the number of images.
    """

    recipe: ClassVar[str]
    digits_size: ClassVar[int | None]
    scores: ClassVar[type[Any]]

    def fits(self, kind: type) -> bool:
        """Whether models of this class are of this kind."""

    def options(self, classes: Sequence[str]) -> dict[str, Any]:
        """What `models.create` is told of the classes."""

    def views(self, views: Views) -> Views:
        """The recipe's views, normalised as this kind needs it."""

    def refuse(self, model: nn.Module, recipe: ImageRecipe) -> None:
        """Raise ValueError if something in the recipe has no meaning for the model."""

    def batch(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """What is trained on: of images float32 [B, 3, height, width] and probabilities of classes [B, K]."""

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """[], to be minimised."""

    def sums(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """float64 [scores]: summed over these images, on the CPU."""

    def trial(self, model: nn.Module, images: Tensor, classes: Sequence[str]) -> str | None:
        """Try the model on an image; why its answer is of no use, or None. Raises what the model raises."""

    def keep(self, folder: Path, model: nn.Module, facts: Mapping[str, Any]) -> None:
        """Write `model.safetensors`, and at last `config.json`."""


class Classes:
    """Labels of one class each."""

    recipe: ClassVar[str] = "light"
    digits_size: ClassVar[int | None] = 32
    scores: ClassVar[type[Any]] = ClassScores

    def fits(self, kind: type) -> bool:
        """Those in timm's conventions."""
        return issubclass(kind, ImageModel)

    def options(self, classes: Sequence[str]) -> dict[str, Any]:
        """A classifier of as many."""
        return {"num_classes": len(classes)}

    def views(self, views: Views) -> Views:
        """As they are."""
        return views

    def refuse(self, model: nn.Module, recipe: ImageRecipe) -> None:
        """Nothing."""

    def batch(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Both as they are."""
        return images, targets

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean cross-entropy with the soft targets, unless the model has a loss of its own."""
        own: Any = getattr(model, "training_loss", None)
        out: Tensor = functional.cross_entropy(model(batch[0]), batch[1]) if own is None else own(*batch)
        return out

    def sums(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Hits, hits among five, and losses."""
        logits = model(images).float().cpu()
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        return torch.cat([top_hits(logits, labels).double(), loss.double()[None]])

    def trial(self, model: nn.Module, images: Tensor, classes: Sequence[str]) -> str | None:
        """Another number of classes."""
        shape = list(model(images).shape)
        if shape == [1, len(classes)]:
            return None
        return f"has {len(classes)} classes, and the model gives {shape}; build it with that num_classes"

    def keep(self, folder: Path, model: nn.Module, facts: Mapping[str, Any]) -> None:
        """The weights, for `models.create`, and beside the facts how it is built and what its answers mean."""
        weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        with atomic_path(folder / "model.safetensors") as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})
        write_json(folder / "config.json", {"num_classes": len(facts["classes"]), **facts})


@runtime_checkable
class ImageLikelihood(Protocol):
    """A model of images [B, C, height, width] of whole numbers, the levels; `config.in_channels` is C, 1 or 3."""

    def quantize(self, images: Tensor) -> Tensor:
        """Levels of images with values from -1 to 1."""

    def training_loss(self, images: Tensor) -> Tensor:
        """[], to be minimised."""

    def bits_per_dim(self, images: Tensor) -> Tensor:
        """[B], for scores."""

    def save(self, folder: str | Path, notes: Mapping[str, Any] | None = None) -> None:
        """Write `model.safetensors` and `config.json`, which takes the notes."""


class Likelihoods:
    """The images themselves: labels are not looked at, grey models see them in grey."""

    recipe: ClassVar[str] = "axial"
    digits_size: ClassVar[int | None] = None
    scores: ClassVar[type[Any]] = BitScores

    def fits(self, kind: type) -> bool:
        """Those with the methods of `ImageLikelihood`."""
        return issubclass(kind, ImageLikelihood)

    def options(self, classes: Sequence[str]) -> dict[str, Any]:
        """Nothing."""
        return {}

    def views(self, views: Views) -> Views:
        """From -1 to 1, from which levels are made."""
        return replace(views, pixels=Pixels())

    def refuse(self, model: nn.Module, recipe: ImageRecipe) -> None:
        """What is of labels, or makes no image."""
        of_labels = {
            "smoothing": recipe.smoothing,
            **vars(recipe.mixing),
            "erasing": recipe.views.erasing,
        }
        given = ", ".join(f"{name} {value:g}" for name, value in of_labels.items() if value)
        if given:
            raise ValueError(
                f"ImageTraining: {given}: {type(model).__name__} is a model of the images themselves, and this is for "
                f"classes; leave it 0, or take the recipe {self.recipe}."
            )

    def batch(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Levels alone."""
        return (self._levels(model, images),)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """The model's own."""
        chosen: Any = model
        out: Tensor = chosen.training_loss(*batch)
        return out

    def sums(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Bits a dimension."""
        chosen: Any = model
        bits: Tensor = chosen.bits_per_dim(self._levels(model, images))
        return bits.double().sum()[None].cpu()

    def trial(self, model: nn.Module, images: Tensor, classes: Sequence[str]) -> str | None:
        """Nothing: a model of videos, or of other channels, refuses the image."""
        self.sums(model, images, torch.empty(0))
        return None

    def keep(self, folder: Path, model: nn.Module, facts: Mapping[str, Any]) -> None:
        """As the model saves itself, for its own `load` and for `models.create`."""
        chosen: Any = model
        chosen.save(folder, notes=facts)

    def _levels(self, model: nn.Module, images: Tensor) -> Tensor:
        chosen: Any = model
        if chosen.config.in_channels == 1:
            images = torch.einsum("bchw,c->bhw", images, images.new_tensor(_GREY))[:, None]
        levels: Tensor = chosen.quantize(images)
        return levels


TASKS: tuple[ImageTask, ...] = (Likelihoods(), Classes())


def task_of(kind: type) -> ImageTask | None:
    """How models of this class are trained on images; None for those that do not say it by their methods."""
    return next((task for task in TASKS if task.fits(kind)), None)
