"""Neighbourhood attention: every cell sees a window of the same size, shifted inwards or cut at the borders."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn._shapes import check_hidden_states, check_range
from attensor.nn.grid_attention import GridMixer
from attensor.nn.mixer import Heads
from attensor.ops import neighborhood_attention
from attensor.ops._free_sizes import is_sure
from attensor.ops.neighborhood_attention.neighborhood import axes_of, keys_seen

__all__ = ["NeighborhoodAttention"]


class NeighborhoodAttention(GridMixer):
    """Every cell of a 1-, 2- or 3-D grid attends to the `window_size` nearest cells along each axis.

    Cost O(cells * window_size^axes * C). On a grid smaller than asked for, window, dilation and stride shrink to what
    fits, in this order, unless `border` or `padding` says otherwise. Keys of the state_dict: `qkv.{weight,bias}`,
    `proj.{weight,bias}`, and `rpb` with relative biases, as in the weights of NAT and DiNAT.

    Args:
        hidden_size: channels C.
        num_heads: heads H.
        window_size: cells seen along each axis; one number for all axes or one for each.
        dilation: distance between the cells seen.
        stride: so many neighbouring queries share one window.
        is_causal: along an axis, a cell sees itself and what comes before it.
        border: `"shift"`: at a border the window moves inwards; `"truncate"`: it loses the cells beyond.
        relative_bias: learn a number for each head and offset, `rpb` [H, 2 w1 - 1, ..]; grids then have as many axes as
            `window_size`, two if it is one number. A window that shrinks uses the middle of the table.
        padding: `"visible"`: a grid smaller than a dilated window is completed at its end by zeros before the
            projections, which are attended to like cells (NAT, DiNAT); `"none"`: windows shrink.
        device, dtype: of the parameters.
    Raises:
        ValueError: padding for windows that are cut; heads do not divide the channels.
    Source: arXiv:2204.07143; dilation arXiv:2209.15001; stride arXiv:2504.16922.
    """

    shown = (*GridMixer.shown, "window_size", "dilation", "stride", "is_causal", "border", "padding")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        window_size: int | tuple[int, ...] = 7,
        dilation: int | tuple[int, ...] = 1,
        stride: int | tuple[int, ...] = 1,
        is_causal: bool | tuple[bool, ...] = False,
        border: Literal["shift", "truncate"] = "shift",
        relative_bias: bool = False,
        padding: Literal["none", "visible"] = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, num_heads, device=device, dtype=dtype)
        check_range(self, 1, window_size=window_size, dilation=dilation, stride=stride)
        options = (window_size, dilation, stride, is_causal)
        lengths = {len(value) for value in options if isinstance(value, (tuple, list))}
        if len(lengths) > 1 or not lengths <= {1, 2, 3}:
            raise ValueError(
                f"{type(self).__name__}: window_size, dilation, stride and is_causal must each be one value or one for "
                f"each of one to three axes, got {', '.join(map(str, options))}."
            )
        if padding == "visible" and border == "truncate":
            raise ValueError(
                f'{type(self).__name__}: padding="visible" is for windows that are shifted; with border="truncate" '
                "they need not fit, leave it out."
            )
        self.window_size, self.dilation, self.stride, self.is_causal = window_size, dilation, stride, is_causal
        self.border, self.padding = border, padding
        self.rpb = None
        if relative_bias:
            windows = window_size if isinstance(window_size, (tuple, list)) else (window_size,) * 2
            self.ranks = (len(windows) + 2,)
            self.rpb = nn.Parameter(torch.empty(num_heads, *(2 * w - 1 for w in windows), device=device, dtype=dtype))
            self.reset_own_parameters()

    def reset_own_parameters(self) -> None:
        """Truncated normal of standard deviation 0.02 for the relative biases."""
        if self.rpb is not None:
            nn.init.trunc_normal_(self.rpb, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """The relative biases, as the authors train them."""
        return set() if self.rpb is None else {"rpb"}

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Mix the cells of the grid, completed to a whole window where padding is visible: [B, *space, C]."""
        check_hidden_states(self, hidden_states, self.hidden_size, self.ranks)
        space = hidden_states.shape[1:-1]
        missing = [more - n for n, more in zip(space, self._completed(space))]
        if not any(more > 0 for more in missing):
            return super().forward(hidden_states)
        out = super().forward(F.pad(hidden_states, (0, 0, *(x for more in reversed(missing) for x in (0, more)))))
        for axis, n in enumerate(space, 1):
            out = out.narrow(axis, 0, n)
        return out

    def attend(self, heads: Heads, *, prefix: Heads | None = None) -> Tensor:
        """Neighbourhood attention with what fits the grid; every cell also sees the tokens `prefix`, [B, E, H, D]."""
        q, k, v, *_ = heads
        if any(is_sure(n == 0) for n in q.shape[1:-2]):
            return v  # as empty as the output
        windows, dilations, strides = self._fit(q.shape[1:-2])
        out: Tensor = neighborhood_attention(
            q,
            k,
            v,
            window_size=windows,
            dilation=dilations,
            stride=strides,
            is_causal=self.is_causal,
            border=self.border,
            relative_bias=self._bias(windows),
            additional_keys=None if prefix is None else prefix.k,
            additional_values=None if prefix is None else prefix.v,
        )
        return out

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """Values of the symbols of the card's formulas for an input of that size."""
        completed = self._completed(space)
        windows, dilations, strides = self._fit(completed)
        pairs = math.prod(
            keys_seen(axis) for axis in axes_of(completed, windows, dilations, strides, self.is_causal, self.border)
        )
        return {**super().cost_sizes(space), "W": math.prod(windows), "M": round(pairs / math.prod(space))}

    def _completed(self, space: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes with visible padding."""
        if self.padding == "none":
            return tuple(space)
        window, dilation = (self._per_axis(value, len(space)) for value in (self.window_size, self.dilation))
        return tuple(max(n, w * d) for n, w, d in zip(space, window, dilation))

    def _bias(self, windows: tuple[int, ...]) -> Tensor | None:
        """The part of the table that windows of these sizes reach."""
        bias: Tensor | None = self.rpb
        if bias is None:
            return None
        for axis, (window, full) in enumerate(zip(windows, self._per_axis(self.window_size, len(windows))), 1):
            if window < full:
                bias = bias.narrow(axis, full - window, max(0, 2 * window - 1))
        return bias

    def _fit(self, space: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        axes = len(space)
        windows, dilations = (self._per_axis(value, axes) for value in (self.window_size, self.dilation))
        if self.border == "shift":
            windows = tuple(min(window, n) for window, n in zip(windows, space))
            dilations = tuple(min(d, n // max(window, 1)) for d, window, n in zip(dilations, windows, space))
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
