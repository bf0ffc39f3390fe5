"""A layer of grids in a model of tokens: some tokens in front that are no cells, then the cells row by row."""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor, nn

from attensor.errors import ShapeError
from attensor.nn import Heads
from attensor.nn.grid_attention import GridMixer
from attensor.ops import softmax_attention

__all__ = ["TokenGrid", "grid_of"]


def grid_of(model: nn.Module) -> tuple[tuple[int, int], int] | None:
    """Rows and columns of patches and tokens in front of them, as timm's models and ours say; None if they do not."""
    found = getattr(model, "patch_embed", None)
    space = getattr(model, "grid_size", None) or getattr(found, "grid_size", None)
    if space is None or len(space) != 2:
        return None
    return (int(space[0]), int(space[1])), int(getattr(model, "num_prefix_tokens", 0))


class TokenGrid(nn.Module):
    """Lets a mixer of grids read tokens [B, P + rows * columns, C].

    The P tokens in front attend to all tokens; cells see each other as the mixer says, and the tokens in front.

    Args:
        layer: a `GridMixer`.
        space: rows and columns; another number of cells is taken for a square.
        num_prefix_tokens: P.
    Raises:
        ValueError: P > 0 and a mixer whose cells cannot see further tokens.
    """

    def __init__(self, layer: nn.Module, space: tuple[int, int], num_prefix_tokens: int) -> None:
        super().__init__()
        self.layer, self.space, self.num_prefix_tokens = layer, space, num_prefix_tokens
        self._sees_prefix = isinstance(layer, GridMixer) and "prefix" in inspect.signature(layer.attend).parameters
        self._is_spaceless = not getattr(layer, "uses_space", True)
        if num_prefix_tokens and not (self._sees_prefix or self._is_spaceless):
            raise ValueError(
                f"{type(layer).__name__}: its cells see no further tokens, but the model has {num_prefix_tokens} in "
                'front of its patches (a class token); take "neighborhood", or a model without (class_token=False).'
            )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, P + rows * columns, C] to the same.

        Raises:
            ShapeError: cells that are neither those of the grid nor of a square.
        """
        mixer = self.layer
        if self._is_spaceless:
            out: Tensor = mixer(hidden_states)
            return out
        count = self.num_prefix_tokens
        space = self._space(hidden_states.shape[1] - count)
        if not count or not isinstance(mixer, GridMixer):
            return torch.flatten(mixer(torch.unflatten(hidden_states, 1, space)), 1, 2)
        heads = mixer.project(hidden_states)
        q, k, v = heads.q, heads.k, heads.v
        front = softmax_attention(q[:, :count], k, v)
        cells = Heads(*(torch.unflatten(x[:, count:], 1, space) for x in (q, k, v)))
        prefix = Heads(*(x[:, :count] for x in (q, k, v)))
        behind: Tensor = mixer.attend(cells, prefix=prefix)  # type: ignore[call-arg]
        return mixer.merge(torch.cat([front, behind.flatten(1, 2)], 1), heads)

    def _space(self, cells: int) -> tuple[int, int]:
        side = math.isqrt(max(cells, 0))
        if math.prod(self.space) == cells:
            return self.space
        if side * side != cells:
            raise ShapeError(
                f"TokenGrid: hidden_states must have {self.num_prefix_tokens} tokens and the cells of a grid "
                f"{self.space} or of a square, got {cells} cells; feed images of the model's own size."
            )
        return side, side
