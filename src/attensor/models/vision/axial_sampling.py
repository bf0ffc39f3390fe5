r"""Samples, pixel by pixel, in three ways that give the same images for the same noise.

    x = argmax(logits + temperature * g),   g = -log(-log U)           Gumbel-max: a draw from the softmax

    slow            the whole model of a plane for each of its pixels        H W passes
    semi-parallel   the rows above once a row, the row for each pixel        H passes of the outer stack, W of a row
    cached          keys and values of columns and of the row are kept       one pass in all

Noise is drawn row by row, also for pixels that are given. Numbers differ between the ways by rounding: in float64 the
samples do not, in float32 one of many thousand pixels may.
Source: arXiv:1912.12180, section 3.2 (semi-parallel).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.models.vision.axial_stacks import Plane, shifted

if TYPE_CHECKING:
    from attensor.models.vision.axial_transformer import AxialTransformer

__all__ = ["Drawing", "Method", "draw_images"]

Method = Literal["cached", "semi-parallel", "slow"]

_LEAST = 1e-9  # of a uniform number whose logarithm is taken


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn.

    Attributes:
        method: way of computing, see above.
        temperature: of the noise; 0 takes the most likely level.
        generator: of the noise; PyTorch's own if None.
        on_row: called after each row with those that are done and all there are.
    """

    method: Method
    temperature: float
    generator: torch.Generator | None
    on_row: Callable[[int, int], None]


@torch.no_grad()
def draw_images(model: AxialTransformer, images: Tensor, how: Drawing) -> None:
    """Put a level in the place of every negative number of `images`, [B, C, H, W] or [B, T, C, H, W], int64."""
    videos = images[:, None] if model.frames is None else images
    count, frames, channels, height, width = videos.shape
    planes, rows = (channels, height) if model.config.has_exterior else (1, channels * height)
    is_cached, caches = how.method == "cached", None
    if model.frames is not None and is_cached:
        caches = model.frames.blocks.new_caches(count * height * width, frames)
    for number in range(frames):
        frame, context = videos[:, number], None
        if model.frames is not None and number == 0:
            context = model.plane.pos_h.new_zeros(count, height, width, model.config.hidden_size)
        elif model.frames is not None:
            first = number - 1 if is_cached else 0
            context = model.frames.summary(videos[:, first:number], first, caches)[:, -1]
        for plane in range(planes):
            condition = model.condition(frame, torch.full((count,), plane, device=frame.device), context)
            own = frame[:, plane] if model.config.has_exterior else frame
            done = (number * planes + plane) * rows
            own.copy_(
                _draw_plane(model.plane, own.flatten(1, -2), condition, how, done, frames * planes * rows).view_as(own)
            )


def _draw_plane(
    plane: Plane, given: Tensor, condition: Tensor | None, how: Drawing, rows_done: int, all_rows: int
) -> Tensor:
    """Levels [B, H, W] in the places where `given` is negative, in raster order; the others stay."""
    is_missing = given < 0
    levels = given.clamp(min=0)
    reader = _READERS[how.method](plane, levels, condition)
    for row, wanted in enumerate(is_missing.any(0).tolist()):
        noise = how.temperature * _gumbel(levels[:, row], plane.head, how.generator)
        for column in (c for c, is_wanted in enumerate(wanted) if is_wanted):
            drawn = (reader.logits(row, column) + noise[:, column]).argmax(-1)
            levels[:, row, column] = torch.where(is_missing[:, row, column], drawn, levels[:, row, column])
        how.on_row(rows_done + row + 1, all_rows)
    return levels


def _gumbel(row: Tensor, head: torch.nn.Linear, generator: torch.Generator | None) -> Tensor:
    """[B, W, K], at least float32."""
    dtype = torch.promote_types(head.weight.dtype, torch.float32)
    device = row.device if generator is None else generator.device
    uniform = torch.rand(*row.shape, head.out_features, generator=generator, device=device, dtype=dtype)
    return -torch.log(-torch.log(uniform.clamp(min=_LEAST))).to(row.device)


class _Slow:
    """The definition: everything anew for each pixel."""

    def __init__(self, plane: Plane, levels: Tensor, condition: Tensor | None) -> None:
        self._plane, self._levels, self._condition = plane, levels, condition

    def logits(self, row: int, column: int) -> Tensor:
        """[B, K] of a pixel, when all before it are in `levels`."""
        out: Tensor = self._plane(self._levels, self._condition)
        return out[:, row, column]


class _SemiParallel:
    """What is above once for each row, then the row anew for each of its pixels."""

    def __init__(self, plane: Plane, levels: Tensor, condition: Tensor | None) -> None:
        self._plane, self._levels, self._place = plane, levels, plane.place(condition)
        self._row, self._above = -1, torch.empty(0)

    def logits(self, row: int, column: int) -> Tensor:
        """[B, K] of a pixel, when all before it are in `levels`."""
        plane, here = self._plane, slice(row, row + 1)
        if row != self._row:
            self._row = row
            self._above = shifted(plane.outer(plane.embed(self._levels) + self._place), 1)[:, here]
        cells = plane.embed(self._levels[:, here])
        hidden_states = plane.inner(shifted(cells, 2) + self._above + self._place[:, here])
        return plane.logits(hidden_states[:, 0, column])


class _Cached:
    """Each row goes through the outer stack once, and each pixel through the inner one, as soon as they are known."""

    def __init__(self, plane: Plane, levels: Tensor, condition: Tensor | None) -> None:
        self._plane, self._levels, self._place = plane, levels, plane.place(condition)
        count, rows, columns = levels.shape
        self._of_columns = plane.outer.new_caches(count * columns, rows)
        self._of_row = plane.inner.new_caches(count, columns)
        self._above = self._place.new_zeros(count, 1, columns, self._place.shape[-1])
        self._row, self._rows_read, self._columns_read = -1, 0, 0

    def logits(self, row: int, column: int) -> Tensor:
        """[B, K] of a pixel, when all before it are in `levels`."""
        plane = self._plane
        if row != self._row:
            self._begin(row)
        new = slice(self._columns_read, column + 1)
        self._columns_read = column + 1
        # right-shifted: before the first column of a row there are zeros
        left = plane.embed(self._levels[:, row, max(new.start - 1, 0) : column])
        left = F.pad(left, (0, 0, column + 1 - new.start - left.shape[1], 0))[:, None]
        hidden_states = left + self._above[:, :, new] + self._place[:, row : row + 1, new]
        return plane.logits(plane.inner(hidden_states, self._of_row)[:, 0, -1])

    def _begin(self, row: int) -> None:
        """Read the rows above that have not been read yet, and forget the row before."""
        self._row, self._columns_read = row, 0
        for cache in self._of_row:
            if cache is not None:
                cache.crop(0)
        if row > self._rows_read:
            new = slice(self._rows_read, row)
            self._rows_read = row
            cells = self._plane.embed(self._levels[:, new]) + self._place[:, new]
            self._above = self._plane.outer(cells, self._of_columns)[:, -1:]


_READERS: dict[str, type[_Slow | _SemiParallel | _Cached]] = {
    "slow": _Slow,
    "semi-parallel": _SemiParallel,
    "cached": _Cached,
}
