"""A bias for every pair of a cell and a key on a coarser grid, learned as a function of their distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ContinuousBias"]

_SPAN = 8.0  # what the far end of the trained grid is called before the logarithm


class ContinuousBias(nn.Module):
    """[H, cells, keys] by an MLP on the logarithm of offsets; keys `fc1`, `fc2`.

    The MLP sees each offset once: with K keys along an axis of n cells there are few, however many pairs.

    Args:
        num_heads: heads H.
        trained_space: rows and columns of the grid whose offsets were learned; others are measured by it. None: every
            grid by itself.
        inner_size: channels inside the MLP.
        device, dtype: of the parameters.
    Source: arXiv:2111.09883, section 3.3, as in arXiv:2311.17132.
    """

    def __init__(
        self,
        num_heads: int,
        *,
        trained_space: tuple[int, int] | None = None,
        inner_size: int = 512,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.trained_space = trained_space
        self.fc1 = nn.Linear(2, inner_size, device=device, dtype=dtype)
        self.fc2 = nn.Linear(inner_size, num_heads, device=device, dtype=dtype)

    def forward(self, space: tuple[int, int], keys: tuple[int, int]) -> Tensor:
        """The bias of all cells of `space` and of keys that are means of its cells, [H, cells, keys]."""
        trained = space if self.trained_space is None else self.trained_space
        (rows, of_rows), (columns, of_columns) = (_offsets(*axis) for axis in zip(space, keys, trained))
        like = self.fc1.weight
        table = torch.cartesian_prod(like.new_tensor(rows), like.new_tensor(columns)).view(-1, 2)
        biases = self.fc2(F.relu(self.fc1(table)))  # [offsets, H]
        places = [torch.tensor(one, device=like.device).view(n, m) for one, n, m in
                  zip((of_rows, of_columns), space, keys)]  # fmt: skip
        index = places[0][:, None, :, None] * len(columns) + places[1][None, :, None, :]  # [rows, columns, keys..]
        found: Tensor = biases[index.flatten()].view(math.prod(space), math.prod(keys), -1).movedim(-1, 0)
        return found


def _offsets(cells: int, keys: int, trained: int) -> tuple[list[float], list[int]]:
    """Logarithms of the offsets along one axis, and which of them each pair of a cell and a key has."""
    middles = []
    for key in range(keys):
        first, last = key * cells // keys, -(-(key + 1) * cells // keys)  # as adaptive pooling cuts
        middles.append((first + last - 1) / 2)
    pairs = [cell - middle for cell in range(cells) for middle in middles]
    found = sorted(set(pairs))
    place = {offset: number for number, offset in enumerate(found)}
    return [_logarithm(offset / max(trained - 1, 1) * _SPAN) for offset in found], [place[offset] for offset in pairs]


def _logarithm(offset: float) -> float:
    return math.copysign(math.log2(abs(offset) + 1) / math.log2(_SPAN), offset)
