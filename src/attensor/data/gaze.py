"""Scenes with the paths of those who looked at them, generated or recorded, as batches and as what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.data.files import generator
from attensor.data.object_scenes import Scenes
from attensor.data.recorded import Recorded
from attensor.data.shelves import Shelves
from attensor.errors import DataError

__all__ = ["Gaze", "generated", "padded_paths", "recorded"]


@dataclass(frozen=True)
class Gaze:
    """Paths over scenes.

    Attributes:
        scenes: P, one for each path.
        paths: [P, M] int64, -1 behind the end.
        groups: [P] int64, equal for paths over the same scene.
    """

    scenes: Scenes
    paths: Tensor
    groups: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, index: Tensor) -> Gaze:
        """Some of them, without padding that none of them needs."""
        paths = self.paths[index]
        return Gaze(self.scenes[index], paths[:, : int((paths >= 0).sum(1).max())], self.groups[index])

    def batch(self, step: int, *, seed: int, batch_size: int) -> Gaze:
        """Those of a step, every path once before any comes again: a pure function of the arguments."""
        count = len(self)
        places = torch.arange(step * batch_size, (step + 1) * batch_size)
        epochs = range(int(places[0]) // count, int(places[-1]) // count + 1)
        order = torch.cat([torch.randperm(count, generator=generator(seed, epoch, count)) for epoch in epochs])
        return self.rows(order[places - epochs[0] * count])


def generated(shelves: Shelves, count: int, *, seed: int, stream: int = 0, observers: int = 1) -> Gaze:
    """Shelves of the generator, each looked at by some observers."""
    scenes, products = shelves.scenes(count, seed=seed, stream=stream)
    paths = [shelves.paths(scenes, products, seed=seed, stream=stream + 7919 * (one + 1)) for one in range(observers)]
    groups = torch.arange(count).repeat(observers)
    return Gaze(Scenes.join([scenes] * observers), padded_paths([path for part in paths for path in part]), groups)


def recorded(found: Recorded, *, held_out: float, seed: int) -> tuple[Gaze, Gaze]:
    """What a file holds, parted by scenes: to train on, and held out.

    Raises:
        DataError: a scene without a path, or too few scenes for both.
    """
    missing = [number for number, path in enumerate(found.paths, 1) if path is None]
    if missing:
        raise DataError(
            f"scene {missing[0]} has no fixations to learn from; {len(missing)} of {len(found.paths)} lack them."
        )
    paths = [path for path in found.paths if path is not None]
    groups = torch.tensor(_groups(found.scenes))
    whole = Gaze(Scenes.join(found.scenes), padded_paths(paths), groups)
    number = int(groups.max()) + 1
    kept = max(1, round(held_out * number))
    if kept >= number:
        raise DataError(f"there are only {number} different scenes: too few to train on some and hold out {kept}.")
    chosen = torch.randperm(number, generator=generator(seed, number))[:kept]
    is_held_out = torch.isin(groups, chosen)
    return whole.rows((~is_held_out).nonzero()[:, 0]), whole.rows(is_held_out.nonzero()[:, 0])


def _groups(scenes: Sequence[Scenes]) -> list[int]:
    """A number for each different scene."""
    known: dict[bytes, int] = {}
    return [known.setdefault(_content(scene), len(known)) for scene in scenes]


def _content(scene: Scenes) -> bytes:
    return b"".join(x.numpy().tobytes() for x in (scene.looks, scene.cells, scene.target, scene.grid))


def padded_paths(paths: Sequence[Tensor]) -> Tensor:
    """[P, longest], -1 behind the end of each."""
    longest = max(len(path) for path in paths)
    return torch.stack([F.pad(path, (0, longest - len(path)), value=-1) for path in paths])
