"""The body of the grid layers: one joint projection to queries, keys and values, one back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attensor.nn._shapes import head_dim
from attensor.nn.mixer import Heads, Mixer

__all__ = ["GridMixer"]


class GridMixer(Mixer):
    """Projections around an attention over `[B, *space, C]`; a subclass says in `attend` who sees whom.

    Keys of the state_dict, as in vision checkpoints: `qkv.*` (rows q, k, v, each by head), `proj.*`.

    Args:
        hidden_size: channels C of input and output.
        num_heads: heads H, each of C / H channels.
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels.
    """

    ranks: tuple[int, ...] = (3, 4, 5)

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.head_dim = head_dim(self, hidden_size, num_heads)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, device=device, dtype=dtype)
        self.proj = nn.Linear(hidden_size, hidden_size, device=device, dtype=dtype)

    def project(self, hidden_states: Tensor) -> Heads:
        """[B, *space, C] to queries, keys and values [B, *space, H, D]."""
        return Heads(*self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3))

    def merge(self, out: Tensor, heads: Heads) -> Tensor:
        """Output projection: [B, *space, H, D] to [B, *space, C]."""
        mixed: Tensor = self.proj(out.flatten(-2))
        return mixed
