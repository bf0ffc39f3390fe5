"""Neighbourhood attention: every cell sees a window of the same size, shifted inwards at the borders."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attensor.nn._shapes import check_range
from attensor.nn.grid_attention import GridMixer
from attensor.nn.mixer import Heads
from attensor.ops import neighborhood_attention
from attensor.ops.neighborhood_attention.neighborhood import axes_of, keys_seen

__all__ = ["NeighborhoodAttention"]


class NeighborhoodAttention(GridMixer):
    """Every cell of a 1-, 2- or 3-D grid attends to the `window_size` nearest cells along each axis.

    Cost O(cells * window_size^axes * C). On a grid smaller than asked for, window, dilation and stride shrink to what
    fits, in this order. Keys of the state_dict: `qkv.{weight,bias}`, `proj.{weight,bias}`.

    Args:
        hidden_size: channels C.
        num_heads: heads H.
        window_size: cells seen along each axis; one number for all axes or one for each.
        dilation: distance between the cells seen.
        stride: so many neighbouring queries share one window.
        is_causal: along an axis, a cell sees itself and what comes before it.
        device, dtype: of the parameters.
    Source: arXiv:2204.07143; dilation arXiv:2209.15001; stride arXiv:2504.16922.
    """

    shown = (*GridMixer.shown, "window_size", "dilation", "stride", "is_causal")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        window_size: int | tuple[int, ...] = 7,
        dilation: int | tuple[int, ...] = 1,
        stride: int | tuple[int, ...] = 1,
        is_causal: bool | tuple[bool, ...] = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, num_heads, device=device, dtype=dtype)
        check_range(self, 1, window_size=window_size, dilation=dilation, stride=stride)
        for argument, value in (("window_size", window_size), ("dilation", dilation), ("stride", stride)):
            if isinstance(value, (tuple, list)) and not 1 <= len(value) <= 3:
                raise ValueError(
                    f"{type(self).__name__}: {argument} must be one integer or one for each axis, got {value}."
                )
        self.window_size, self.dilation, self.stride, self.is_causal = window_size, dilation, stride, is_causal

    def attend(self, heads: Heads) -> Tensor:
        """Neighbourhood attention with what fits the grid."""
        q, k, v, *_ = heads
        windows, dilations, strides = self._fit(q.shape[1:-2])
        out: Tensor = neighborhood_attention(
            q, k, v, window_size=windows, dilation=dilations, stride=strides, is_causal=self.is_causal
        )
        return out

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """Values of the symbols of the card's formulas for an input of that size."""
        windows, dilations, strides = self._fit(space)
        axes = axes_of(space, windows, dilations, strides, self.is_causal)
        keys = math.prod(keys_seen(axis) / axis.length for axis in axes)
        return {**super().cost_sizes(space), "W": math.prod(windows), "M": round(keys)}

    def _fit(self, space: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        axes = len(space)
        windows = tuple(min(window, n) for window, n in zip(self._per_axis(self.window_size, axes), space))
        dilations = tuple(
            min(dilation, n // max(window, 1))
            for dilation, window, n in zip(self._per_axis(self.dilation, axes), windows, space)
        )
        strides = tuple(min(stride, window) for stride, window in zip(self._per_axis(self.stride, axes), windows))
        return windows, dilations, strides

    def _per_axis(self, value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
        if not isinstance(value, (tuple, list)):
            return (value,) * axes
        if len(value) != axes:
            raise ValueError(
                f"NeighborhoodAttention: options for {len(value)} axes {value}, but the grid has {axes}; "
                "give one number for all axes or one for each."
            )
        return tuple(value)
