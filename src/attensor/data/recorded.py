"""What recordings of gaze hold, from whatever files they come."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attensor.data.object_scenes import Scenes

__all__ = ["Recorded"]


@dataclass(frozen=True)
class Recorded:
    """Scenes, a path and the objects' names each.

    Attributes:
        scenes: one each.
        paths: [M] int64 each; None where there is none.
        names: of the objects of each scene, or none.
    """

    scenes: list[Scenes]
    paths: list[Tensor | None]
    names: list[tuple[str, ...]]
