"""The body of the grid layers: one joint projection to queries, keys and values, one back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attensor.nn._shapes import check_hidden_states, head_dim

__all__ = ["GridMixer"]


class GridMixer(nn.Module):
    """Projections around an attention over `[B, *space, C]`; a subclass says in `attend` who sees whom.

    Keys of the state_dict, as in vision checkpoints: `qkv.*` (rows q, k, v, each by head), `proj.*`.

    Args:
        hidden_size: channels C of input and output.
        num_heads: heads H, each of C / H channels.
        device: of the parameters.
        dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels.
    """

    ranks: tuple[int, ...] = (3, 4, 5)  # of the input, batch and channels included

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

    def reset_parameters(self) -> None:
        """Draw the projections anew, as `nn.Linear` does."""
        self.qkv.reset_parameters()
        self.proj.reset_parameters()

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention itself: [B, *space, H, D] three times to the same."""
        raise NotImplementedError

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Mix the cells of the grid.

        Args:
            hidden_states: [B, *space, C].
        Returns:
            [B, *space, C].
        Raises:
            ShapeError: another rank or width.
        """
        check_hidden_states(self, hidden_states, self.hidden_size, self.ranks)
        q, k, v = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        mixed: Tensor = self.proj(self.attend(q, k, v).flatten(-2))
        return mixed

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """Values of the symbols of the card's formulas for an input of that size."""
        return {"T": torch.Size(space).numel(), "H": self.num_heads, "K": self.head_dim, "V": self.head_dim}

    def extra_repr(self) -> str:
        """Options, for `print(layer)`."""
        return f"hidden_size={self.hidden_size}, num_heads={self.num_heads}"
