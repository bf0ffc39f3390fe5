"""Which places may follow: answers that break a rule of the task get no probability.

Each is a function of the beams so far [B, width, steps], the points of each input [B] and the number of choices (the
longest input's points and the end symbol 0), and gives a mask [B, width, choices].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CONSTRAINTS", "Constraint", "delaunay", "hull", "none", "tsp"]

Constraint = Callable[[Tensor, Tensor, int], Tensor]


def none(prefix: Tensor, counts: Tensor, choices: int) -> Tensor:
    """Any point of the input, or the end."""
    places = torch.arange(choices, device=prefix.device)
    return (places <= counts[:, None, None]).expand(-1, prefix.shape[1], -1).clone()


def hull(prefix: Tensor, counts: Tensor, choices: int) -> Tensor:
    """Three different points; then any new one, the first, which closes the polygon, or the end; after closing the end.

    Polygons without the first point at their end count as closed.
    """
    mask = none(prefix, counts, choices) & ~_visited(prefix, choices)
    if prefix.shape[-1] < 3:
        mask[..., 0] = False
        return mask
    first = prefix[..., :1]
    is_closed = (prefix[..., 1:] == first).any(-1)
    mask[..., 0] = True
    mask.scatter_(-1, first, True)
    return _only_end_where(mask, is_closed)


def tsp(prefix: Tensor, counts: Tensor, choices: int) -> Tensor:
    """Every city once, then the first, then the end."""
    mask = none(prefix, counts, choices) & ~_visited(prefix, choices)
    mask[..., 0] = False
    if not prefix.shape[-1]:
        return mask
    is_complete = ~mask.any(-1, keepdim=True)
    mask.scatter_(-1, prefix[..., :1], is_complete)
    return _only_end_where(mask, prefix.shape[-1] > counts[:, None].expand(prefix.shape[:-1]))


def delaunay(prefix: Tensor, counts: Tensor, choices: int) -> Tensor:
    """Triples of different points in ascending order; the end between triples, once there is one."""
    mask, inside = none(prefix, counts, choices), prefix.shape[-1] % 3
    places = torch.arange(choices, device=prefix.device)
    # a corner leaves room for those behind it
    mask &= places <= counts[:, None, None] - (2 - inside)
    mask[..., 0] = inside == 0 and prefix.shape[-1] > 0
    if inside:
        mask &= places > prefix[..., -1:]
    return mask


def _visited(prefix: Tensor, choices: int) -> Tensor:
    shape = (*prefix.shape[:-1], choices)
    return torch.zeros(shape, dtype=torch.bool, device=prefix.device).scatter_(-1, prefix, True)


def _only_end_where(mask: Tensor, done: Tensor) -> Tensor:
    end = torch.zeros_like(mask)
    end[..., 0] = True
    return torch.where(done[..., None], end, mask)


CONSTRAINTS: dict[str, Constraint] = {"none": none, "hull": hull, "tsp": tsp, "delaunay": delaunay}
