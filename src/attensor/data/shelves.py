"""Shelves with products on them, and somebody who searches one: generated scenes with honest, simulated gaze.

    utility of product k = 6 cos(k, target) - distance(k, gaze) / 2 - inhibition(k)

The observer begins at the centre and looks next at a product drawn by the softmax of the utilities; each visit inhibits
its product by 3, which fades by a fifth a step. On the target the search ends with probability 0.8. A second draw by
the same rule is how well any model can do: the likeness of two people.
Sizes: B scenes, R x C products on each shelf, M fixations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.data.files import generator
from attensor.data.object_scenes import Scenes

__all__ = ["Shelves", "ShelvesConfig", "observe"]

_FAMILIES, _STOP, _FADING = 6, 0.8, 0.8


@dataclass(frozen=True)
class ShelvesConfig:
    """What the generated shelves hold.

    Attributes:
        grid: rows and columns of a shelf.
        products: how many there are to choose from, of 6 families that look alike.
        crops: draw crops of 29 x 29 pixels (a shape in a colour on stripes) instead of giving 8 numbers.
        longest: fixations of an observer at most.
        seed: of the products.
    """

    grid: tuple[int, int] = (3, 6)
    products: int = 24
    crops: bool = False
    longest: int = 20
    seed: int = 0


class Shelves:
    """Scenes and paths as pure functions of a number.

    Attributes:
        config: what they hold.
        looks: [products, 8] unit vectors, float32: what the observer sees.
    """

    def __init__(self, config: ShelvesConfig | None = None) -> None:
        self.config = config or ShelvesConfig()
        drawn = torch.randn(_FAMILIES + self.config.products, 8, generator=generator(self.config.seed, -3))
        families, own = drawn[:_FAMILIES], drawn[_FAMILIES:]
        kind = torch.arange(self.config.products) % _FAMILIES
        self.looks = F.normalize(families[kind] + 0.4 * own, dim=-1)
        self._shown = _crops(kind, own) if self.config.crops else self.looks

    @property
    def look(self) -> tuple[int, ...]:
        """As `OATConfig.look`."""
        return (_SIDE, _SIDE) if self.config.crops else (8,)

    def scenes(self, count: int, *, seed: int, stream: int = 0) -> tuple[Scenes, Tensor]:
        """Shelves, and which product stands at each place [B, R C].

        Args:
            count: B.
            seed: of the choices.
            stream: another one gives other scenes.
        Raises:
            ValueError: more places than products.
        """
        rows, columns = self.config.grid
        number = rows * columns
        if number > self.config.products:
            raise ValueError(f"Shelves: {rows} x {columns} places need as many products, got {self.config.products}.")
        random = generator(seed, stream, count)
        order = torch.rand(count, self.config.products, generator=random).argsort(1)[:, :number]
        target = torch.randint(0, number, (count,), generator=random)
        cells = torch.stack([torch.arange(number) // columns, torch.arange(number) % columns], -1)
        grid = torch.tensor([rows, columns]).expand(count, -1)
        return Scenes(self._shown[order], cells.expand(count, -1, -1), target, grid), order

    def paths(self, scenes: Scenes, products: Tensor, *, seed: int, stream: int = 0) -> Tensor:
        """What an observer of each scene looks at, [B, M] int64, -1 behind the end."""
        looks, random = self.looks[products], generator(seed, stream, -1)
        alike = torch.einsum("bnd,bd->bn", looks, looks[torch.arange(len(scenes)), scenes.target])
        return observe(6 * alike, scenes, longest=self.config.longest, random=random)


def observe(
    attraction: Tensor, scenes: Scenes, *, longest: int, random: torch.Generator, nearness: float = 0.5
) -> Tensor:
    """Paths of observers who are drawn to what is attractive and near, and who leave what they have seen.

    Args:
        attraction: [B, N], of each object.
        scenes: B of them, all of N objects.
        longest: fixations at most.
        random: of the choices.
        nearness: what a step of a cell costs.
    Returns:
        [B, M] int64, -1 behind the end.
    """
    batch = torch.arange(len(scenes))
    gaze = (scenes.grid.double() - 1) / 2
    inhibition, ended = torch.zeros_like(attraction), torch.zeros(len(scenes), dtype=torch.bool)
    path: list[Tensor] = []
    for _ in range(longest):
        far = (scenes.cells - gaze[:, None]).abs().sum(-1)
        utility = attraction - nearness * far - inhibition
        chosen = torch.multinomial(utility.softmax(-1), 1, generator=random)[:, 0]
        path.append(chosen.masked_fill(ended, -1))
        inhibition = inhibition * _FADING
        inhibition[batch, chosen] += 3
        gaze = scenes.cells[batch, chosen].double()
        stops = torch.rand(len(scenes), generator=random) < _STOP
        ended = ended | ((chosen == scenes.target) & stops)
        if bool(ended.all()):
            break
    return torch.stack(path, 1)


_SIDE = 29  # pixels: the least that the published convolutions take


def _crops(kind: Tensor, own: Tensor) -> Tensor:
    """A crop for each product [P, side, side, 3]: the family gives shape and stripes, the product its colours."""
    line = torch.linspace(-1, 1, _SIDE)
    y, x = torch.meshgrid(line, line, indexing="ij")
    shapes = torch.stack([x.hypot(y) < 0.6, x.abs().maximum(y.abs()) < 0.55, (x.abs() + y.abs()) < 0.75])
    colours = own.sigmoid()
    crops = []
    for family, colour in zip(kind.tolist(), colours):
        stripes = (((x if family % 2 else y) * math.pi * (2 + family)).sin() > 0).float()
        ground = stripes[..., None] * colour[:3] + (1 - stripes[..., None]) * colour[3:6]
        crops.append(torch.where(shapes[family % 3][..., None], colour[5:8], ground))
    return torch.stack(crops)
