"""Ranks that work on one thing: who they are, and the calls between them, which say who waited for whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from attensor.errors import RankError, plain
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked, checked_fields

__all__ = ["Ranks"]


@checked_fields
@dataclass(frozen=True)
class Ranks:
    """One of the ranks that share a layer, and the way to the others.

    Attributes:
        rank: its number among them.
        size: how many there are.
        group: that they call each other in; None for a part by itself, whose sums are its own terms.
    """

    rank: int
    size: int
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        check_range(self, 1, size=self.size)
        check_range(self, 0, self.size, rank=self.rank)

    @classmethod
    @checked
    def of(cls, group: dist.ProcessGroup | DeviceMesh | None = None) -> Self:
        """Those of a group, of a mesh with one dimension, or by default of all processes.

        Raises:
            RuntimeError: torch.distributed has not been initialised.
            ValueError: a mesh of several dimensions, or a group that this process is not in.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "parallel: there is no process group; start with `torchrun --nproc-per-node 2 ...` and call "
                "torch.distributed.init_process_group() first."
            )
        if isinstance(group, DeviceMesh):
            if group.ndim != 1:
                raise ValueError(
                    f"parallel: group must be a mesh of one dimension, got {group.ndim}; take one, as in "
                    f"mesh[{(group.mesh_dim_names or ('tp',))[-1]!r}]."
                )
            group = group.get_group()
        group = dist.group.WORLD if group is None else group
        rank = dist.get_rank(group)
        if group is None or rank < 0:
            raise ValueError("parallel: group must be one that this process is in; shard in its members alone.")
        return cls(rank, dist.get_world_size(group), group)

    def sum(self, term: Tensor) -> Tensor:
        """The sum of all ranks' terms, in each of them; in place. One all-reduce, none without a group.

        Raises:
            RankError: a rank is gone, or did not come in the time of the group.
        """
        if self.group is None or self.size == 1:
            return term
        term = term.contiguous()
        self._call("all_reduce", term, lambda: dist.all_reduce(term, group=self.group))
        return term

    def gather(self, part: Tensor) -> Tensor:
        """What all ranks hold, which is of one shape: [size, *part.shape]. One all-gather.

        Raises:
            RankError: as `sum`, or there is no group.
        """
        if self.size == 1:
            return part[None]
        if self.group is None:
            raise RankError(f"parallel: rank {self.rank} of {self.size} is by itself, and cannot gather; give a group.")
        found = part.new_empty(self.size, *part.shape)
        own = part.contiguous()
        # the concatenated form, which every back-end has
        whole = found.flatten(0, 1) if part.ndim else found
        self._call("all_gather", own, lambda: dist.all_gather_into_tensor(whole, own, group=self.group))
        return found

    def _call(self, name: str, tensor: Tensor, call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:  # what every back-end raises, for a lost connection as for a late rank
            others = [rank for rank in range(self.size) if rank != self.rank]
            whom = f"rank {others[0]}" if len(others) == 1 else f"one of the ranks {', '.join(map(str, others))}"
            raise RankError(
                f"parallel: rank {self.rank} of {self.size} waited in vain for {whom} in {name} of "
                f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}: that rank ended, or came later than "
                "the group's timeout. Look at its output, and start all ranks again. The back-end says: "
                f"{plain(str(error), most=200)}"
            ) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same: a copied layer belongs to the same group."""
        return self
