"""How image models are trained: the schedules of their papers, and those for small data, as rows of one table."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, replace
from typing import Any, Literal

from attensor.data.augment import IMAGENET_PIXELS, Pixels, Views
from attensor.data.mixing import Mixing
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked_fields

__all__ = ["RECIPES", "ImageRecipe", "find_recipe"]

_STRONG = Views(rand_augment=(2, 27), erasing=0.25)
_BOTH = Mixing(mixup=0.8, cutmix=1.0)


@checked_fields
@dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """A schedule for image models.

    Attributes:
        epochs: times that every image is seen.
        batch_size: images of a step; the rate is scaled with it when another is taken.
        learning_rate: peak, for `batch_size`.
        final_factor: share of the peak that is left at the end of a half cosine.
        warmup_epochs: in which the rate rises.
        weight_decay: of matrices.
        optimizer: AdamW, or SGD with Nesterov's momentum of 0.9.
        clip_norm: of the gradient; None leaves it.
        smoothing: of labels.
        ema: decay of the averaged weights that are scored and kept; None for none.
        layer_decay: share of the rate from layer to layer towards the input; 1 for none.
        views: changes of an image.
        mixing: of a batch.
    """

    epochs: float = 300
    batch_size: int = 1024
    learning_rate: float = 1e-3
    final_factor: float = 1e-2
    warmup_epochs: float = 5
    weight_decay: float = 0.05
    optimizer: Literal["adamw", "sgd"] = "adamw"
    clip_norm: float | None = 1.0
    smoothing: float = 0.1
    ema: float | None = None
    layer_decay: float = 1.0
    views: Views = _STRONG
    mixing: Mixing = _BOTH

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with.

        Raises:
            ValueError: names the option.
        """
        check_range(self, above=0, epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate)
        check_range(self, above=0, clip_norm=self.clip_norm, layer_decay=self.layer_decay)
        check_range(self, 0, 1, smoothing=self.smoothing, ema=self.ema)
        check_range(self, 0, warmup_epochs=self.warmup_epochs, weight_decay=self.weight_decay)
        check_range(self, 0, final_factor=self.final_factor)

    def with_options(self, **options: Any) -> ImageRecipe:
        """The same with other values, also of `views` and `mixing`; those that are None change nothing."""
        given = {name: value for name, value in options.items() if value is not None}
        of = {kind: {field.name for field in dataclasses.fields(kind)} for kind in (Views, Mixing)}
        views = replace(self.views, **{name: given.pop(name) for name in of[Views] & given.keys()})
        mixing = replace(self.mixing, **{name: given.pop(name) for name in of[Mixing] & given.keys()})
        return replace(self, views=views, mixing=mixing, **given)


_PLAIN = Views(crop_scale=0.35)
_LIGHT = ImageRecipe(epochs=30, batch_size=64, warmup_epochs=2, views=_PLAIN, mixing=Mixing())

# timm's and TensorFlow's magnitudes count to 10, kornia's to 30: 9 is 27, and 15 (MaxViT) the most there is
RECIPES = {
    "light": _LIGHT,
    "fine-tune": replace(_LIGHT, learning_rate=2e-4, layer_decay=0.75),
    # arXiv:2204.03645 and the authors' code
    "davit": ImageRecipe(batch_size=2048, learning_rate=2e-3, final_factor=5e-3),
    # arXiv:2204.01697 and the authors' hyper-parameters; 10,000 steps of warm-up are 32 epochs
    "maxvit": ImageRecipe(
        batch_size=4096,
        learning_rate=3e-3,
        final_factor=1 / 300,
        warmup_epochs=32,
        ema=0.9999,
        views=Views(pixels=Pixels(), rand_augment=(2, 29)),
        mixing=Mixing(mixup=0.8),
    ),
    # arXiv:2103.12731; the schedule is from memory
    "halonet": ImageRecipe(
        epochs=350,
        batch_size=4096,
        learning_rate=1.6,
        final_factor=0.0,
        warmup_epochs=10,
        weight_decay=8e-5,
        optimizer="sgd",
        clip_norm=None,
        ema=0.9999,
        views=Views(pixels=IMAGENET_PIXELS, rand_augment=(2, 27)),
        mixing=Mixing(),
    ),
    # arXiv:2204.07143, without the ten epochs at the lowest rate after the cosine
    "nat": ImageRecipe(final_factor=5e-3, warmup_epochs=20),
    # the authors' code
    "l2vit": ImageRecipe(batch_size=4096, learning_rate=4e-3, final_factor=2.5e-4, warmup_epochs=20, ema=0.9999),
    # arXiv:2411.07635 and the authors' code, without repeated augmentation
    "rala": ImageRecipe(learning_rate=1e-3, final_factor=1e-2, ema=0.99996),
    # arXiv:1912.12180 and its code: Adam, the norm and the average; rate and epochs are for small models and data
    "axial": ImageRecipe(
        epochs=14,
        batch_size=64,
        learning_rate=4e-3,
        final_factor=0.05,
        warmup_epochs=0,
        weight_decay=0.0,
        smoothing=0.0,
        ema=0.99995,
        views=Views(crop_scale=1.0, flip=0.0, kept=1.0),
        mixing=Mixing(),
    ),
}


def find_recipe(name: str) -> ImageRecipe:
    """The recipe of this name.

    Raises:
        ValueError: there is none; the message has the nearest.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"--recipe {name[:40]!r}: is none of {', '.join(RECIPES)}.{hint}")
