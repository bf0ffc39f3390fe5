"""Scenes of objects on a grid, one of which is searched for: what a model of gaze looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attensor.errors import ShapeError

__all__ = ["Scenes"]


@dataclass(frozen=True)
class Scenes:
    """Some scenes, padded to the same number of objects. Sizes: B scenes, N objects.

    Attributes:
        looks: [B, N, height, width, 3] crops from 0 to 1, or [B, N, numbers] other descriptions; any floating dtype.
        cells: [B, N, 2] int64, row and column of each object, from 0.
        target: [B] int64, which object is searched for.
        grid: [B, 2] int64, rows and columns of the shelf.
        present: [B, N] bool, false where a scene has fewer objects; None if all have N.
    Raises:
        ShapeError: sizes disagree. TypeError: dtypes. ValueError: devices differ, a target that is not there, or a cell
            outside of its grid.
    """

    looks: Tensor
    cells: Tensor
    target: Tensor
    grid: Tensor
    present: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        _check_tensor("looks", self.looks)
        if self.looks.ndim not in (3, 5) or not self.looks.is_floating_point():
            raise ShapeError(
                "Scenes: looks must be [B, N, height, width, 3] crops or [B, N, numbers], floating, got "
                f"{list(self.looks.shape)} {self.looks.dtype}."
            )
        sizes = list(self.looks.shape[:2])
        expected = {"cells": [*sizes, 2], "target": sizes[:1], "grid": [sizes[0], 2]}
        for name, shape in expected.items():
            x = getattr(self, name)
            _check_tensor(name, x)
            if x.dtype != torch.int64 or x.device != self.looks.device:
                raise TypeError(
                    f"Scenes: {name} must be int64 on {self.looks.device}, as looks, got {x.dtype} on {x.device}; use "
                    ".long() or .to(..)."
                )
            if list(x.shape) != shape:
                raise ShapeError(f"Scenes: {name} must be {shape} beside looks {sizes}, got {list(x.shape)}.")
        if self.present is not None:
            _check_tensor("present", self.present)
            if list(self.present.shape) != sizes or self.present.dtype != torch.bool:
                raise ShapeError(
                    f"Scenes: present must be {sizes} bool, got {list(self.present.shape)} {self.present.dtype}."
                )
        self._check_places()

    def _check_places(self) -> None:
        if self.looks.is_meta or torch.compiler.is_compiling() or not self.looks.shape[0]:
            return
        present = torch.ones_like(self.cells[..., 0], dtype=torch.bool) if self.present is None else self.present
        number = self.looks.shape[1]
        if bool(((self.target < 0) | (self.target >= number)).any()) or not bool(
            present.gather(1, self.target[:, None].long()).all()
        ):
            raise ValueError(
                f"Scenes: target must be an object that is there, below {number}, got {self.target.tolist()}."
            )
        outside = ((self.cells < 0) | (self.cells >= self.grid[:, None])).any(-1) & present
        if bool(outside.any()):
            scene, place = (int(x) for x in outside.nonzero()[0])
            raise ValueError(
                f"Scenes: cells must lie on the grid: object {place} of scene {scene} is at "
                f"{self.cells[scene, place].tolist()} of a grid {self.grid[scene].tolist()}, counted from 0."
            )

    def __len__(self) -> int:
        """Scenes."""
        return self.looks.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Scenes:
        """Some of the scenes."""
        present = None if self.present is None else self.present[rows]
        return Scenes(self.looks[rows], self.cells[rows], self.target[rows], self.grid[rows], present)

    def to(self, device: torch.device | str) -> Scenes:
        """The same elsewhere."""
        present = None if self.present is None else self.present.to(device)
        looks, cells, target, grid = (x.to(device) for x in (self.looks, self.cells, self.target, self.grid))
        return Scenes(looks, cells, target, grid, present)

    @staticmethod
    def join(parts: Sequence[Scenes]) -> Scenes:
        """Scenes of any layouts in one batch, padded to the largest.

        Raises:
            ShapeError: descriptions of different sizes.
        """
        kinds = {tuple(part.looks.shape[2:]) for part in parts}
        if len(kinds) != 1:
            raise ShapeError(f"Scenes.join: looks must be of one size, got {sorted(map(list, kinds))}.")
        most = max(part.looks.shape[1] for part in parts)
        padded = [part._padded(most) for part in parts]
        looks, cells, target, grid, present = (torch.cat(x) for x in zip(*padded, strict=True))
        return Scenes(looks, cells, target, grid, None if bool(present.all()) else present)

    def _padded(self, number: int) -> tuple[Tensor, ...]:
        present = torch.ones_like(self.cells[..., 0], dtype=torch.bool) if self.present is None else self.present
        more = number - self.looks.shape[1]
        looks, cells, present = (
            torch.cat([x, x.new_zeros(x.shape[0], more, *x.shape[2:])], 1) for x in (self.looks, self.cells, present)
        )
        return looks, cells, self.target, self.grid, present


def _check_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor) or x.layout is not torch.strided or x.is_nested:
        raise TypeError(f"Scenes: {name} must be a dense torch.Tensor, got {type(x).__name__}; use torch.as_tensor.")
