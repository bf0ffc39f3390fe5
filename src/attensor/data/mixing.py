"""Mixup and CutMix: a batch with itself turned round, and targets that say how much of each is there.

One share is drawn for the batch, from Beta(alpha, alpha) as in the papers (arXiv:1710.09412, arXiv:1905.04899).
kornia's mixup draws it evenly, so that the recipes' 0.8 has no place there.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Mixing", "mix", "soft_targets"]


@dataclass(frozen=True)
class Mixing:
    """How batches are mixed: with both, each is taken for half of the batches.

    Attributes:
        mixup: alpha of mixup; 0 leaves it out.
        cutmix: alpha of CutMix; 0 leaves it out.
    Raises:
        ValueError: a negative alpha.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no distribution."""
        if min(self.mixup, self.cutmix) < 0:
            raise ValueError(f"Mixing: mixup and cutmix must be at least 0, got {self.mixup} and {self.cutmix}.")


def soft_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Probabilities of the classes: `1 - smoothing` of the label, the rest spread over all of them.

    Args:
        labels: int64 [B].
        num_classes: K.
        smoothing: 0 to below 1.
    Returns:
        float32 [B, K]; rows sum to 1.
    """
    return functional.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def mix(images: Tensor, targets: Tensor, how: Mixing, chance: random.Random) -> tuple[Tensor, Tensor]:
    """The batch mixed with itself in the other order.

    Args:
        images: [B, C, height, width].
        targets: [B, K].
        how: which mixing.
        chance: where everything random comes from.
    Returns:
        images and targets of the same shapes; those that were given if nothing is to be mixed.
    """
    alphas = [alpha for alpha in (how.mixup, how.cutmix) if alpha]
    if not alphas:
        return images, targets
    is_cut = not how.mixup or (len(alphas) == 2 and chance.random() < 0.5)
    share = chance.betavariate(*(2 * [how.cutmix if is_cut else how.mixup]))
    if is_cut:
        images, share = _cut(images, share, chance)
    else:
        images = torch.lerp(images.flip(0), images, share)
    return images, torch.lerp(targets.flip(0), targets, share)


def _cut(images: Tensor, share: float, chance: random.Random) -> tuple[Tensor, float]:
    """A rectangle of the others put in; the share that is left of the own, which a border can make larger."""
    height, width = images.shape[-2:]
    side = math.sqrt(1 - share)
    (top, bottom), (left, right) = (_stretch(size, side, chance) for size in (height, width))
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _stretch(size: int, side: float, chance: random.Random) -> tuple[int, int]:
    half, middle = int(side * size) // 2, chance.randrange(size)
    return max(0, middle - half), min(size, middle + half)
