"""Whose is what: the heads and the columns of the latent that a rank has, and its part of a state_dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attensor.nn._shapes import check_range
from attensor.ops._checks import checked, checked_fields

__all__ = ["Place", "check_shares", "piece", "split_state_dict"]

_DOWN = "kv_a_proj_with_mqa.weight"


@checked_fields
@dataclass(frozen=True)
class Place:
    """Which heads and which columns of the latent a rank has; the ranks of one slice are neighbours.

    Attributes:
        rank, ranks: its number, of so many.
        groups: slices of the latent, a divisor of `ranks`.
    """

    rank: int
    ranks: int
    groups: int = 1

    def __post_init__(self) -> None:
        check_range(self, 1, ranks=self.ranks, groups=self.groups)
        check_range(self, 0, self.ranks, rank=self.rank)
        if self.ranks % self.groups:
            raise ValueError(
                f"parallel: groups must divide the number of ranks, got {self.groups} groups and {self.ranks} ranks."
            )

    @property
    def parts(self) -> int:
        """Ranks that share the heads of one slice."""
        return self.ranks // self.groups

    @property
    def group(self) -> int:
        """The slice."""
        return self.rank // self.parts

    @property
    def part(self) -> int:
        """The place among the ranks of its slice."""
        return self.rank % self.parts

    def heads(self, num_heads: int) -> slice:
        """Those of a decoding step."""
        return piece(num_heads, self.part, self.parts)

    def prompt_heads(self, num_heads: int) -> slice:
        """Those of a prompt, which are among the others."""
        return piece(num_heads, self.part * self.groups + self.group, self.ranks)

    def columns(self, width: int) -> slice:
        """Those of the latent."""
        return piece(width, self.group, self.groups)


def piece(count: int, index: int, pieces: int) -> slice:
    """The one of some equal pieces of a row."""
    return slice(count // pieces * index, count // pieces * (index + 1))


@checked
def split_state_dict(state_dict: Mapping[str, Tensor], place: Place, num_heads: int) -> dict[str, Tensor]:
    """What a rank needs of a state_dict: of every latent attention its part, everything else as it is.

    `kv_b_proj` holds keys and values of head after head, and is cut by heads; with slices, `kv_slice.weight` is added:
    what makes keys and values of the slice, for all heads of a decoding step.

    Args:
        state_dict: of a `LatentAttention`, or of a model whose latent attentions have the same number of heads.
        place: of the rank.
        num_heads: H, a multiple of the ranks.
    Raises:
        ValueError: the heads or the latent cannot be shared.
    """
    found = dict(state_dict)
    for name in (key.removesuffix(_DOWN) for key in state_dict if key.endswith(_DOWN)):
        q = "q_proj" if f"{name}q_proj.weight" in state_dict else "q_b_proj"
        _check_parts(name, state_dict, q, num_heads)
        up = state_dict[f"{name}kv_b_proj.weight"]
        check_shares(place, num_heads, up.shape[1])
        heads, prompt, columns = place.heads(num_heads), place.prompt_heads(num_heads), place.columns(up.shape[1])
        by_head = {
            key: torch.unflatten(state_dict[f"{name}{key}.weight"], 0, (num_heads, -1)) for key in (q, "kv_b_proj")
        }
        output = torch.unflatten(state_dict[f"{name}o_proj.weight"], 1, (num_heads, -1))
        cut = {
            q: by_head[q][heads].flatten(0, 1),
            "kv_b_proj": by_head["kv_b_proj"][prompt].flatten(0, 1),
            "o_proj": output[:, heads].flatten(1),
        }
        if place.groups > 1:
            cut["kv_slice"] = by_head["kv_b_proj"][heads][..., columns].flatten(0, 1)
        # copies: a view would keep all of it in memory
        found |= {f"{name}{key}.weight": weight.detach().clone() for key, weight in cut.items()}
    return found


def _check_parts(name: str, state_dict: Mapping[str, Tensor], q: str, num_heads: int) -> None:
    """Refuse a layer without one of its matrices, or one that the heads do not share."""
    for key, axis in ((q, 0), ("kv_b_proj", 0), ("o_proj", 1)):
        part = state_dict.get(f"{name}{key}.weight")
        if part is None or part.ndim != 2 or num_heads < 1 or part.shape[axis] % num_heads:
            got = "none" if part is None else str(list(part.shape))
            raise ValueError(
                f"split_state_dict: state_dict must have {name}{key}.weight, a matrix whose axis {axis} the num_heads "
                f"{num_heads} share, got {got}; give layers whole, and the heads that they were made with."
            )


def check_shares(place: Place, num_heads: int, rank: int) -> None:
    """Refuse heads, or a latent of width `rank`, that the ranks cannot share evenly.

    Raises:
        ValueError: see above.
    """
    if num_heads % place.ranks:
        raise ValueError(
            f"parallel: num_heads must be a multiple of the {place.ranks} ranks, got {num_heads}; take fewer ranks."
        )
    if rank % place.groups:
        raise ValueError(
            f"parallel: groups must divide kv_rank, got {place.groups} groups and kv_rank {rank}; take fewer groups."
        )
