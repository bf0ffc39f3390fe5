"""Scenes made from triples: noisy features of a subject, an object, the whole, and both together.

    subject  proto[s] + noise        object   proto[o] + noise
    scene    the mean of both + noise, twice drawn: the second is `union`

Whole and union do not say who does what to whom: the predicate of an asymmetric relation is in the order of the
windows alone. Prototypes belong to the graph and the seed; the noise to the number of the batch.
Source: arXiv:2109.13392, section 4 (there: features of images, of two boxes, and of the box around both).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attensor.data.files import generator
from attensor.errors import DataError

__all__ = ["SceneData"]


@dataclass(frozen=True)
class SceneData:
    """Scenes of a graph's triples.

    Attributes:
        num_entities: of the graph.
        num_classes: of entities, for unary labels; each entity belongs to one, drawn by the seed. 0 for none.
        input_size: numbers of a window.
        noise: standard deviation beside prototypes of standard deviation 1.
        subject_noise: of the subject's window, where it is another.
        class_share: share of a prototype's variance that its class explains.
        seed: of prototypes and classes.
    Raises:
        DataError: a number out of range.
    """

    num_entities: int
    num_classes: int = 0
    input_size: int = 32
    noise: float = 0.7
    subject_noise: float | None = None
    class_share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        bounds = {"num_entities": (1, None), "num_classes": (0, None), "input_size": (1, None), "noise": (0, None)}
        for name, (low, high) in {**bounds, "subject_noise": (0, None), "class_share": (0, 1)}.items():
            value = getattr(self, name)
            if value is not None and not (value >= low and (high is None or value <= high)):
                limits = f"at least {low}{f' and at most {high}' if high else ''}"
                raise DataError(f"SceneData: {name} must be {limits}, got {value}.")

    @cached_property
    def classes(self) -> Tensor:
        """Of every entity, int64 [N]; each class has as many as the others, or one more."""
        order = torch.randperm(self.num_entities, generator=generator(self.seed, 1))
        return torch.remainder(order, max(1, self.num_classes))

    @cached_property
    def prototypes(self) -> Tensor:
        """Of every entity, [N, input_size]."""
        random = generator(self.seed, 2)
        own = torch.randn(self.num_entities, self.input_size, generator=random)
        if not self.num_classes:
            return own
        centres = torch.randn(self.num_classes, self.input_size, generator=random)
        return math.sqrt(1 - self.class_share) * own + math.sqrt(self.class_share) * centres[self.classes]

    def features(self, triples: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scenes of triples: a pure function of its arguments.

        Args:
            triples: int64 [B, 3] or more columns; subjects and objects are read.
            step: number of the batch; negative ones never meet those of a training.
        Returns:
            scene, subject, object, union, each [B, input_size].
        """
        prototypes, random = self.prototypes, generator(self.seed, 3, step)
        subject, object_ = prototypes[triples[:, 0]], prototypes[triples[:, 2]]
        both, shape = (subject + object_) / 2, (len(triples), self.input_size)
        sizes = (self.noise, self.noise if self.subject_noise is None else self.subject_noise, self.noise, self.noise)
        scene, one, other, union = (
            clean + size * torch.randn(shape, generator=random)
            for clean, size in zip((both, subject, object_, both), sizes)
        )
        return scene, one, other, union

    def truth(self, triples: Tensor) -> dict[str, Tensor]:
        """Window -> right symbols [B], of subject, object and predicate, and of the subject's class if there is one."""
        right = {"subject": triples[:, 0], "object": triples[:, 2], "predicate": triples[:, 1]}
        return right | ({"class": self.classes[triples[:, 0]]} if self.num_classes else {})
