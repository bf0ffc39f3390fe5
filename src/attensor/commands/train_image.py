"""`attensor train image`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["TrainImage"]


@dataclass(frozen=True)
class TrainImage:
    """Train or fine-tune an image model on a folder with a sub-folder for each class.

    Classifiers learn the classes; models of the images themselves, such as axial_digits, look at no labels.
    The same command goes on with a run that was interrupted, to the same numbers.
    """

    model: str
    """Name of a model, as `attensor show CARD` gives them: maxvit_tiny_tf_224, davit_tiny, axial_digits."""
    data: str
    """A folder of images with a sub-folder for each class, or with train and val and the classes in each; or digits."""
    out: str = "image-model"
    """Folder of the run: checkpoint, curve, and at the end model.safetensors with config.json."""
    recipe: str | None = None
    """Schedule and augmentation: light and fine-tune for small data; davit, maxvit, halonet, nat, l2vit and rala for
    ImageNet, as their papers have them; axial for models of images. Left out: light, or axial for the latter."""
    init: str | None = None
    """Weights to begin with: a safetensors file, or a folder with model.safetensors. A classifier of another number of
    classes starts anew. Left out: random weights."""
    epochs: float | None = None
    """Times that every image is seen. Left out: the recipe's, or what the budget allows."""
    budget: str | None = None
    """Time for the training instead, such as 90s, 10m or 8h: from the time of a few steps follows their number."""
    batch_size: int | None = None
    """Images of a batch; the learning rate is scaled with it. Left out: the recipe's, 64 at most on a CPU."""
    accumulate: int = 1
    """Batches of a step of the optimizer."""
    image_size: int | None = None
    """Side of the images in pixels. Left out: the model's own."""
    held_out: float = 0.1
    """Share of each class that is held out where the folder does not say it."""
    learning_rate: float | None = None
    """Peak, for the images of a step as they are. Left out: the recipe's, in proportion to them."""
    weight_decay: float | None = None
    """Of matrices. Left out, like those below: the recipe's."""
    warmup_epochs: float | None = None
    """In which the learning rate rises."""
    layer_decay: float | None = None
    """Share of the learning rate from layer to layer towards the input; 1 for none."""
    drop_path: float | None = None
    """Stochastic depth of the last block."""
    ema: float | None = None
    """Decay of averaged weights, which are then scored and kept; 0 for none."""
    clip_norm: float | None = None
    """Gradients are scaled down to this norm."""
    smoothing: float | None = None
    """Of labels."""
    crop_scale: float | None = None
    """Least share of an image's area in a random crop; 1 for no crops."""
    flip: float | None = None
    """Probability of a mirror image."""
    rand_augment: tuple[int, ...] | None = None
    """Operations of RandAugment and their magnitude from 1 to 29; 0,0 for none."""
    erasing: float | None = None
    """Probability that a rectangle is erased."""
    mixup: float | None = None
    """Alpha of mixup; 0 for none."""
    cutmix: float | None = None
    """Alpha of CutMix; 0 for none."""
    evaluations: int | None = None
    """Points of the curve. Left out: one an epoch, 10 at most."""
    workers: int | None = None
    """Processes that decode images. Left out: one a core, 8 at most; none for the digits. It changes no number."""
    threads: int | None = None
    """Threads of PyTorch on a CPU. Left out: as it chooses."""
    seed: int = 0
    """Of random weights, the order and the augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU when there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward passes; auto is bfloat16 on a GPU, float32 elsewhere."""

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: the message names the option, its value and the repair.
        """
        for option in ("batch_size", "accumulate", "image_size", "evaluations", "threads"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ValueError(f"--{option.replace('_', '-')} {value}: must be at least 1.")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers {self.workers}: must be at least 0.")
        if self.epochs is not None and self.budget is not None:
            raise ValueError("--epochs and --budget exclude each other: give the epochs, or the time.")
        for option in ("epochs", "learning_rate", "clip_norm"):
            value = getattr(self, option)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"--{option.replace('_', '-')} {value}: must be above 0.")
        if self.rand_augment is not None and len(self.rand_augment) != 2:
            raise ValueError(f"--rand-augment: give 2 numbers, as in 2,9; got {len(self.rand_augment)}.")

    def run(self) -> int:
        """Train, show how it goes, and keep the model.

        Raises:
            DataError, ValueError, OSError: found before the training: data, options, the folder.
        """
        from attensor.image_training import train_image

        return train_image(self)
