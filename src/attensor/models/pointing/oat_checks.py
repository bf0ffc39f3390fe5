"""What OAT refuses of its inputs before anything is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attensor.data.object_scenes import Scenes
from attensor.errors import ShapeError
from attensor.ops._checks import check_integers

if TYPE_CHECKING:
    from attensor.models.pointing.oat import OATConfig

__all__ = ["check_inputs"]


def check_inputs(name: str, config: OATConfig, scenes: Scenes, fixations: Tensor) -> None:
    """Refuse scenes and paths that a model of this configuration does not take.

    Raises:
        ShapeError, TypeError, ValueError: begins with `name`.
    """
    look = config.look
    expected = [*look, 3] if len(look) == 2 else list(look)
    if list(scenes.looks.shape[2:]) != expected:
        raise ShapeError(
            f"{name}: looks must be [B, N, {', '.join(map(str, expected))}], as config.look says, got "
            f"{list(scenes.looks.shape)}."
        )
    fixed = config.fixed_objects
    if fixed is not None and (scenes.looks.shape[1] != fixed or scenes.present is not None):
        objects = f"at most {scenes.looks.shape[1]}" if scenes.present is not None else f"{scenes.looks.shape[1]}"
        raise ShapeError(
            f"{name}: scenes must have {fixed} objects each, as config.fixed_objects says, got {objects}; a model "
            "that points (fixed_objects=None) takes any number."
        )
    check_integers(name, "fixations", fixations, scenes.looks)
    if fixations.ndim != 2 or fixations.shape[0] != len(scenes):
        raise ShapeError(f"{name}: fixations must be [B, M] = [{len(scenes)}, M], got {list(fixations.shape)}.")
    _check_values(name, scenes, fixations, config.max_places)


def _check_values(name: str, scenes: Scenes, fixations: Tensor, places: int) -> None:
    if fixations.is_meta or torch.compiler.is_compiling() or not fixations.numel():
        return
    number = scenes.looks.shape[1]
    ended = fixations < 0
    wrong = (fixations >= number) | (fixations < -1) | (ended[:, :-1] & ~ended[:, 1:]).any(1, keepdim=True)
    if scenes.present is not None:
        wrong |= ~scenes.present.gather(1, fixations.clamp(0, number - 1)) & ~ended
    if bool(wrong.any()):
        raise ValueError(
            f"{name}: fixations must be objects that are there, below {number}, with -1 behind the end alone, got "
            f"{fixations[wrong.any(1)][0].tolist()}."
        )
    if int(scenes.grid.max()) > places:
        raise ValueError(
            f"{name}: grid {scenes.grid.max(0).values.tolist()} has more rows or columns than the {places} codes that "
            "config.max_places gives; build the model with more."
        )
