"""Smaller learning rates for layers near the input, for fine-tuning (arXiv:2003.10555; arXiv:2106.08254)."""

from __future__ import annotations

from torch import nn

from attensor.models.vision.image_model import ImageModel
from attensor.train.optimizer import named_trainable

__all__ = ["rate_shares"]

_BEHIND = ("head", "norm", "fc_norm", "fc")


def rate_shares(model: ImageModel, decay: float) -> dict[str, float]:
    """The share `decay ** (layers behind it)` of the learning rate, for each trainable parameter by its name.

    A layer is a block; what brings a map to a stage counts with the stage's first block, the stem and positions are
    one layer in front, the head and the norm before it one behind, whose share is 1.

    Args:
        model: in timm's conventions.
        decay: above 0, at most 1.
    Raises:
        ValueError: another decay.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"rate_shares: decay must be above 0 and at most 1, got {decay}.")
    number_of: dict[int, int] = {}
    number = 0
    for part in model.parts():
        inside = getattr(part, "blocks", None)
        blocks = list(inside) if isinstance(inside, nn.ModuleList) else [part]
        number_of |= {id(parameter): number + 1 for parameter in part.parameters()}
        for block in blocks:
            number += 1
            number_of |= {id(parameter): number for parameter in block.parameters()}
    behind = number + 1
    shares = {}
    for name, parameter in named_trainable(model).items():
        place = number_of.get(id(parameter), behind if name.partition(".")[0] in _BEHIND else 0)
        shares[name] = decay ** (behind - place)
    return shares
