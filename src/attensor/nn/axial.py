"""Axial attention: along the rows in one layer, along the columns in the next, or along one axis for good."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attensor.nn._shapes import check_hidden_states, check_range
from attensor.nn.cache import TokenCache
from attensor.nn.grid_attention import GridMixer
from attensor.nn.mixer import DecodingMixer, Heads
from attensor.ops import block_attention, softmax_attention

__all__ = ["AxialAttention"]


class AxialAttention(GridMixer, DecodingMixer):
    """Every cell attends to the cells of its own row (even layers) or its own column (odd layers).

    On a 3-D grid the axes take turns from the last to the first. Cost O(cells * length of the axis * C).
    Keys of the state_dict: `qkv.{weight,bias}`, `proj.{weight,bias}`.

    When causal, lines may come in pieces: a cache keeps keys and values of each line, and its rows are the lines of all
    images in row-major order, `layer.new_cache(batch_size=images * lines)`.

    Args:
        hidden_size: channels C.
        num_heads: heads H.
        axis: among the space axes, 0 the first; if None the layer's turn decides.
        is_causal: a cell sees itself and what comes before it on its line (the paper's masked attention).
        layer_index: place in the stack, from 0.
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels, or an axis that no grid has.
    Source: arXiv:1912.12180, section 3.1.
    """

    ranks = (4, 5)

    shown = (*GridMixer.shown, "axis", "is_causal", "layer_index")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        axis: int | None = None,
        is_causal: bool = False,
        layer_index: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, num_heads, device=device, dtype=dtype)
        check_range(self, 0, layer_index=layer_index)
        check_range(self, 0, 3, axis=axis)
        self.axis, self.is_causal, self.layer_index = axis, is_causal, layer_index

    def forward(self, hidden_states: Tensor, *, cache: TokenCache | None = None) -> Tensor:
        """Mix the cells of every line.

        Args:
            hidden_states: [B, *space, C]; with a cache, the cells that follow on each line.
            cache: past of the same lines; the cells are added to it.
        Returns:
            [B, *space, C].
        Raises:
            ShapeError: another rank or width; a cache for other lines.
            ValueError: an axis that this grid has not; a cache on another device.
            TypeError: a cache of another layer.
        """
        if cache is None:
            return super().forward(hidden_states)
        check_hidden_states(self, hidden_states, self.hidden_size, self.ranks)
        if not torch.compiler.is_compiling():
            *others, _ = hidden_states.movedim(1 + self._axis(hidden_states.dim() - 2), -2).shape[:-1]
            self._check_cache(hidden_states, cache, math.prod(others))
        heads = self.project(hidden_states)
        return self.merge(self.attend(heads, cache=cache), heads)

    def attend(self, heads: Heads, *, cache: TokenCache | None = None) -> Tensor:
        """Attention along this layer's axis, and to what the cache holds of the same lines."""
        q, k, v, *_ = heads
        axis = self._axis(q.dim() - 3)
        if cache is None:
            return block_attention(q, k, v, pattern="axial", axis=axis, is_causal=self.is_causal)
        q, k, v = (t.movedim(1 + axis, -3) for t in (q, k, v))  # [B, *other axes, cells of a line, H, D]
        keys, values = cache.append(keys=k.flatten(0, -4), values=v.flatten(0, -4)).values()
        real = cache.real(cache.length - keys.shape[1], cache.length)
        mask = None if real is None else real[:, None, None]
        out: Tensor = softmax_attention(q.flatten(0, -4), keys, values, is_causal=True, attn_mask=mask)
        return out.view(q.shape).movedim(-3, 1 + axis)

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """Values of the symbols of the card's formulas for an input of that size."""
        return {**super().cost_sizes(space), "X": space[self._axis(len(space))]}

    def _axis(self, axes: int) -> int:
        """The axis, from 0 on, of a grid with so many."""
        if self.axis is None:
            return axes - 1 - self.layer_index % axes
        if self.axis >= axes:
            raise ValueError(f"{type(self).__name__}: axis must be below the {axes} of this grid, got {self.axis}.")
        return self.axis

    def _new_cache(
        self, batch_size: int, max_length: int | None, device: torch.device, dtype: torch.dtype | None
    ) -> TokenCache:
        sizes = dict.fromkeys(("keys", "values"), (self.num_heads, self.head_dim))
        return TokenCache(batch_size, sizes, max_length=max_length, device=device, dtype=dtype)
